"""Controls of the lottery ticket: fresh weights under the same masks, random masks over the first weights."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.train.loop.snapshot import Snapshot, model_tensors
from secateur.train.recovery.fresh import give_fresh_weights
from secateur.train.recovery.tickets import random_tickets, reinitialised
from tests.train.recovery.nets import blobs, convolutions, mlp, state

UNITS = [("weight", {}), ("filter", {}), ("channel", {"example_inputs": torch.randn(2, 1, 6, 6)})]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("make", [mlp, convolutions])
def test_fresh_weights_are_those_of_the_constructor(make) -> None:
    net = make(3)
    net(torch.randn(4, 6) if make is mlp else torch.randn(4, 1, 6, 6))  # moves the running statistics
    give_fresh_weights(net, seed=5)
    assert same(state(net), state(make(5)))


def test_children_come_before_their_owner_as_in_attention() -> None:
    torch.manual_seed(1)
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    give_fresh_weights(net, seed=4)
    torch.manual_seed(4)
    assert same(state(net.self_attn), state(nn.MultiheadAttention(8, 2, batch_first=True)))
    assert bool((net.self_attn.out_proj.bias == 0).all())


def test_random_states_are_left_alone() -> None:
    net = mlp()
    drawn = []
    for fresh in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002 - the user's is the global one
        if fresh:
            give_fresh_weights(net, seed=5)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.gate = nn.Parameter(torch.ones(3))


def test_what_nobody_initialises_is_named() -> None:
    net = Gated()
    with pytest.raises(ValueError, match=r"no fresh value for gate: .*in Gated.*init=function\(model\)"):
        reinitialised(net)
    assert torch.equal(net.gate.data, torch.ones(3))
    other = reinitialised(net, 2, init=lambda model: nn.init.constant_(model.gate, 0.5))
    assert other.gate.tolist() == [0.5] * 3
    torch.manual_seed(2)
    assert torch.equal(other.inner.weight, nn.Linear(3, 3).weight)


def test_a_reset_that_leaves_a_weight_norm_is_seen() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match=r"no fresh value for 0\.parametrizations\.weight\.original0"):
        reinitialised(net)


@pytest.mark.parametrize(("unit", "more"), UNITS)
def test_a_reinitialised_network_has_the_masks_and_none_of_the_weights(unit, more) -> None:
    net = convolutions(0)
    masks = sc.prune(net, 0.5, unit=unit, **more)
    before = state(net)
    other = reinitialised(net, seed=9)
    assert same(state(net), before)
    own = sc.find_masks(other)
    assert own is not None
    assert own is not masks
    assert set(own.unit_masks) == set(masks.unit_masks)
    assert all(torch.equal(own.unit_masks[key], masks.unit_masks[key]) for key in masks.unit_masks)
    own.check()
    fresh = convolutions(9)
    for name, parameter in other.named_parameters():
        mask = own[name] if name in own else torch.ones_like(parameter, dtype=torch.bool)
        assert torch.equal(parameter, torch.where(mask, dict(fresh.named_parameters())[name], 0.0))
    own.undo()
    assert same(state(other), state(fresh))


@pytest.mark.parametrize(("unit", "more"), UNITS)
def test_random_tickets_have_the_counts_and_the_first_weights(unit, more) -> None:
    net = convolutions(0)
    first = Snapshot(0, model_tensors(net))
    for parameter in net.parameters():
        parameter.data.add_(1.0)  # "training"
    masks = sc.prune(net, 0.5, unit=unit, **more)
    tickets = list(random_tickets(net, 3, seed=4, snapshot=first))
    drawn = []
    for ticket in tickets:
        own = sc.find_masks(ticket)
        counts = {key: int(mask.sum()) for key, mask in own.unit_masks.items()}
        assert counts == {key: int(mask.sum()) for key, mask in masks.unit_masks.items()}
        own.check()
        drawn.append(torch.cat([mask.flatten() for mask in own.unit_masks.values()]))
        own.undo()
        assert same(model_tensors(ticket), first.model)
    assert not torch.equal(drawn[0], drawn[1])
    alone = sc.find_masks(next(random_tickets(net, 1, seed=4, snapshot=first)))
    assert torch.equal(torch.cat([mask.flatten() for mask in alone.unit_masks.values()]), drawn[0])


def test_masks_are_drawn_uniformly() -> None:
    net = nn.Linear(4, 2)
    first = state(net)
    sc.prune(net, 0.5)
    share = sum(sc.find_masks(t)["weight"].float() for t in random_tickets(net, 600, seed=1, snapshot=first)) / 600
    assert float((share - 0.5).abs().max()) < 0.08  # four standard deviations


def test_buffers_come_from_the_snapshot_too() -> None:
    net = mlp()
    first = Snapshot(0, model_tensors(net))
    net(blobs()[0])
    sc.prune(net, 0.5)
    ticket = next(random_tickets(net, snapshot=first))
    assert int(net[1].num_batches_tracked) == 1
    assert int(ticket[1].num_batches_tracked) == 0


def test_refusals() -> None:
    net = mlp()
    first = state(net)
    with pytest.raises(ValueError, match="has no masks"):
        random_tickets(net, snapshot=first)
    sc.prune(net, 0.5)
    with pytest.raises(ValueError, match="n=0"):
        random_tickets(net, 0, snapshot=first)
    with pytest.raises(
        ValueError, match=r"another network than this Sequential: '0\.bias' has shape nothing there and \(12,\)"
    ):
        random_tickets(
            net, snapshot={"0.weight": torch.zeros(2), **{k: v for k, v in first.items() if k[0] not in "01"}}
        )
