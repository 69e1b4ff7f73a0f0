"""Edits of kept weights come and go with their masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.core import parse_unit
from secateur.model.edited import dense_values, edit
from secateur.model.targets import find_targets
from secateur.train.prune import cut


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


NEW = {"0.weight": torch.full((6, 4), 2.0), "0.bias": torch.arange(6.0), "1.running_mean": torch.ones(6)}


def test_removed_weights_stay_zero_and_undo_restores_everything() -> None:
    net = network()
    before = state(net)
    masks = sc.prune(net, 0.5)
    edit(masks, NEW)
    assert torch.equal(net[0].weight, 2.0 * masks["0.weight"])
    assert torch.equal(net[0].bias, NEW["0.bias"])
    assert torch.equal(net[1].running_mean, NEW["1.running_mean"])
    edit(masks, {"0.bias": torch.zeros(6)})
    sc.prune(net, 0.7)
    masks.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_what_was_removed_behind_an_edit_is_known_as_it_was_before() -> None:
    """Also where a second edit came with the removal."""
    for again in (False, True):
        net = network()
        before = state(net)
        masks = sc.prune(net, 0.3)
        edit(masks, NEW)
        sc.prune(net, 0.8)
        if again:
            edit(masks, {"0.weight": torch.full((6, 4), 3.0)})
        held = state(net)
        found = dense_values(masks, ["0.weight", "3.weight"])
        assert all(torch.equal(tensor, before[name]) for name, tensor in found.items())
        assert all(torch.equal(tensor, held[name]) for name, tensor in net.state_dict().items())
        masks.undo()
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_what_was_trained_since_stays() -> None:
    net = network()
    before = state(net)
    masks = sc.prune(net, 0.5)
    edit(masks, NEW)
    with torch.no_grad():
        net[0].bias[2] = 9.0
    masks.undo()
    assert net[0].bias[2] == 9.0
    assert torch.equal(net[0].bias[3:], before["0.bias"][3:])


def test_a_checkpoint_carries_edits_and_commit_gives_them_up() -> None:
    net, other = network(), network()
    before = state(net)
    masks = sc.prune(net, 0.5)
    edit(masks, NEW)
    copied = sc.prune(other, 0.5)
    other.load_state_dict(net.state_dict())
    copied.load_state_dict(masks.state_dict())
    copied.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    masks.commit()
    edit(masks, {"0.bias": torch.zeros(6)})
    with pytest.raises(ValueError, match="values are gone"):
        masks.undo()


BAD = pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"0.weights": torch.ones(6, 4)}, "'0.weights' is no parameter or buffer"),
        ({"0.bias": torch.ones(5)}, r"'0.bias' has shape \(6,\), the new values \(5,\)"),
        ({"3.bias": torch.ones(3), "0.bias": torch.full((6,), float("nan"))}, "not finite; nothing was changed"),
    ],
)


@BAD
def test_bad_values_are_refused_before_a_mask_is_made(values: dict[str, Tensor], message: str) -> None:
    net = network()
    before, unit, layout = state(net), parse_unit("weight")[0], find_targets(net)
    with pytest.raises(ValueError, match=message):
        cut(net, {"0.weight": torch.zeros(6, 4).bool()}, unit, {"0.weight": layout["0.weight"]}, True, values)
    assert sc.find_masks(net) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_values_beyond_the_type_of_the_parameter_are_refused() -> None:
    net = network().half()
    masks = sc.prune(net, 0.5)
    before = state(net)
    with pytest.raises(ValueError, match=r"'0\.bias' reach 1e\+06, more than torch\.float16 holds"):
        edit(masks, {"0.weight": torch.ones(6, 4), "0.bias": torch.full((6,), 1e6)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@BAD
def test_bad_values_are_refused_and_nothing_changes(values: dict[str, Tensor], message: str) -> None:
    net = network()
    masks = sc.prune(net, 0.5)
    before = state(net)
    with pytest.raises(ValueError, match=message):
        edit(masks, values)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_that_changed_its_type_can_be_pruned_on_and_restored(dtype: torch.dtype) -> None:
    net = network()
    before = state(net)
    masks = sc.prune(net, 0.3)
    edit(masks, {"0.bias": torch.zeros(6)})
    net.to(dtype)
    sc.prune(net, 0.5)
    assert sum(masks.kept(name) for name in masks) == 21
    masks.check()
    masks.undo()
    assert all(torch.equal(tensor, before[name].to(tensor)) for name, tensor in net.state_dict().items())
