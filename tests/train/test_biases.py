"""Biases as targets: scored and removed one by one, in one pool with the weights, where they are named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.core.allocations import ALLOCATIONS
from secateur.core.criteria import CRITERIA
from secateur.model.targets import find_targets
from secateur.types import KeyLayout

BOTH = ["*.weight", "*.bias"]
NAMES = ["0.weight", "0.bias", "4.weight", "4.bias", "6.weight", "6.bias"]
NO_BIAS = {
    "wanda": "inputs of layers are read",
    "ria": "inputs of layers are read",
    "woodfisher_flops": "multiply-adds are counted",
}
"""Criteria of single weights that read what a bias has not."""
WEIGHT_LEVEL = [name for name, entry in CRITERIA.items() if entry.level == "weight" and entry.data != "training"]


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    return net.double()


def make_data(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(5, 1, 6, 6, generator=generator, dtype=torch.float64),
            torch.randint(3, (5,), generator=generator),
        )
        for _ in range(count)
    ]


def test_biases_of_layers_are_selected_by_name_alone() -> None:
    net = make_net()
    assert list(find_targets(net)) == NAMES[::2]
    assert list(find_targets(net, "*")) == NAMES[::2], "what matches weights means those"
    assert list(find_targets(net, nn.Linear)) == ["4.weight", "6.weight"]
    found = find_targets(net, BOTH)
    assert list(found) == NAMES, "the norm's bias is none of a layer"
    assert [(key.kind, key.role) for key in found.values()][1::2] == [
        ("bias", "first"), ("bias", "hidden"), ("bias", "output"),
    ]  # fmt: skip
    assert list(find_targets(net, "*.bias", exclude="6.bias")) == ["0.bias", "4.bias"]
    for layer in ("6", "6.*", net[6]):
        assert list(find_targets(net, BOTH, layer)) == NAMES[:4], "an excluded layer stays whole"
    assert list(find_targets(net, BOTH, nn.Linear)) == NAMES[:2]
    assert list(find_targets(net, BOTH, "*.weight")) == NAMES[1::2]
    assert list(find_targets(nn.MultiheadAttention(4, 2), "*bias")) == ["in_proj_bias", "out_proj.bias"]


class Tied(nn.Module):
    """Names that lead astray: a head tied to an embedding, with a bias of its own, and an embedding called bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rel_bias = nn.Embedding(7, 4), nn.Embedding(5, 2)
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 7)
        self.head.weight = self.embed.weight


def test_biases_are_found_whatever_else_is_named_or_tied() -> None:
    net = Tied()
    assert list(find_targets(net, "*.bias")) == ["inner.bias", "head.bias"]
    assert find_targets(net, "head.bias")["head.bias"] == KeyLayout((7,), "bias", role="output")
    assert list(find_targets(net, "*bias")) == ["rel_bias.weight", "inner.bias", "head.bias"]
    assert list(find_targets(net, ["*weight", "*bias"], nn.Embedding)) == ["inner.weight", "inner.bias", "head.bias"]
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    assert list(find_targets(normed, "*.bias")) == ["0.bias"]
    shared = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    shared[1].bias = shared[0].bias
    assert list(find_targets(shared, BOTH)) == ["0.weight", "0.bias", "1.weight"]


def test_what_is_no_bias_of_a_layer_is_refused() -> None:
    for name in ("1.bias", "1.weight"):
        with pytest.raises(ValueError, match=rf"'{name}' has shape \(4,\); .*the biases of convolutions"):
            sc.prune(make_net(), 0.5, targets=name)
    with pytest.raises(ValueError, match="'bias_hh_l0' has shape"):
        sc.prune(nn.LSTM(2, 3), 0.5, targets="bias_hh_l0")


@pytest.mark.parametrize("unit", ["filter", "layer", "kernel", "in_channel", "row", "column", "block(2, 2)"])
def test_other_units_are_refused(unit: str) -> None:
    net = make_net()
    with pytest.raises(ValueError, match=r"'0.bias' is a bias: biases are pruned one by one, with unit 'weight'"):
        sc.prune(net, 0.5, unit=unit, targets=BOTH)
    assert sc.find_masks(net) is None


@pytest.mark.parametrize(("criterion", "power"), [("snip", 1), ("taylor", 2)])
def test_scores_are_those_of_an_oracle(criterion: str, power: int) -> None:
    data, net = make_data(3), make_net().eval()
    expected = dict.fromkeys(NAMES, torch.zeros(()))
    for x, y in data:
        gradients = torch.autograd.grad(F.cross_entropy(net(x), y), [net.get_parameter(name) for name in NAMES])
        for name, gradient in zip(NAMES, gradients, strict=True):
            expected[name] = expected[name] + (gradient * net.get_parameter(name).detach()).abs() ** power / len(data)
    found = sc.score(make_net(), criterion, data=data, batches=3, loss=F.cross_entropy, targets=BOTH)
    assert list(found) == NAMES
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name])


def test_snip_of_lenet_removes_the_410_zero_biases_first() -> None:
    """266,610 numbers; biases that begin at zero have |g b| = 0 (part A, 4.2 a)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 300), nn.Tanh(), nn.Linear(300, 100), nn.Tanh(), nn.Linear(100, 10))
    for layer in net[::2]:
        assert isinstance(layer, nn.Linear)
        nn.init.zeros_(layer.bias)
    batch = (torch.randn(100, 784), torch.randint(10, (100,)))
    masks = sc.prune(net, 410 / 266_610, criterion="snip", data=[batch], loss=F.cross_entropy, targets=BOTH)
    assert sum(mask.numel() for mask in masks.values()) == 266_610
    assert {name: int((~mask).sum()) for name, mask in masks.items()} == {
        "0.weight": 0, "0.bias": 300, "2.weight": 0, "2.bias": 100, "4.weight": 0, "4.bias": 10,
    }  # fmt: skip
    another = sc.tickets.reinitialised(net, seed=1)
    assert not torch.equal(another.get_parameter("0.weight"), net.get_parameter("0.weight"))
    assert torch.count_nonzero(another.get_parameter("0.bias")) == 0, "their other weights, under the same masks"


@pytest.mark.parametrize("name", WEIGHT_LEVEL)
def test_every_criterion_of_single_weights(name: str) -> None:
    net = make_net()
    before = copy.deepcopy(net.state_dict())
    how: dict[str, Any] = {"data": make_data(), "loss": F.cross_entropy}
    if CRITERIA[name].data == "init":
        how = {"init": {key: value * 0.5 for key, value in before.items()}}
    if name in NO_BIAS:
        with pytest.raises(ValueError, match=NO_BIAS[name]):
            sc.prune(net, 0.5, criterion=name, targets=BOTH, **how)
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
        return
    masks = sc.prune(net, 0.5, criterion=name, targets=BOTH, **how)
    assert list(masks) == NAMES
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.5 * 587)
    masks.check()


def test_gates_and_inputs_of_a_bias() -> None:
    with pytest.raises(ValueError, match=r"'0.bias' is a bias, which has no gate"):
        sc.prune(make_net(), 0.5, criterion="gate_taylor", data=make_data(), loss=F.cross_entropy, targets=BOTH)


@pytest.mark.parametrize("allocation", list(ALLOCATIONS))
def test_allocations(allocation: str) -> None:
    masks = sc.prune(make_net(), 0.5, allocation=allocation, targets=BOTH)
    gone = {name: int((~mask).sum()) for name, mask in masks.items()}
    assert sum(gone.values()) == round(0.5 * 587)
    if allocation in ("erk", "er"):
        assert [gone[name] for name in NAMES[1::2]] == [0, 0, 0], "as dense as can be: one input"
    if allocation == "uniform_plus":
        assert gone["0.weight"] == gone["0.bias"] == 0, "the first convolution stays dense"
    if allocation == "uniform":
        assert [gone[name] for name in NAMES[1::2]] == [2, 4, 2]


def test_a_pattern_leaves_biases_dense() -> None:
    masks = sc.prune(make_net(), unit="2 of 4", targets=BOTH)
    assert all(bool(masks[name].all()) for name in NAMES[1::2])
    assert int(masks["4.weight"].sum()) == 256


def test_training_keeps_removed_biases_at_zero_and_undo_brings_them_back() -> None:
    net = make_net()
    plan = sc.Plan(sparsity=0.8, criterion="magnitude", schedule="cubic", begin=1, end=4, targets=BOTH)
    optimizer = torch.optim.Adam(net.parameters(), weight_decay=0.1)
    pruner = sc.Pruner(net, plan)
    pruner.attach(optimizer)
    (x, y), *_ = make_data()
    for _ in range(8):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert pruner.masks is not None
    assert int((~pruner.masks["4.bias"]).sum()) > 0
    for name, mask in pruner.masks.items():
        assert torch.count_nonzero(net.get_parameter(name)[~mask]) == 0
    other = make_net()
    before = copy.deepcopy(other.state_dict())
    sc.prune(other, 0.5, targets="*.bias").undo()
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_tickets_act_on_biases_that_are_targets() -> None:
    net = make_net()
    first = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    masks = sc.prune(net, 0.6, targets=BOTH)
    gone = ~masks["4.bias"]
    assert 0 < int(gone.sum()) < 8
    last = copy.deepcopy(net.state_dict())
    made = sc.tickets.ticket(net, snapshot=first, kept="signed_constant", removed="zero_if_shrunk", final=last)
    assert torch.count_nonzero(made.get_parameter("4.bias")[gone]) == 0
    assert made.get_parameter("4.bias")[~gone].abs().unique().numel() == 1
    assert torch.equal(made.get_parameter("1.bias"), first["1.bias"])
    made = sc.tickets.ticket(net, snapshot=first, removed="init")
    optimizer = torch.optim.SGD(made.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    with sc.tickets.frozen(made, masks):
        for x, y in make_data():
            optimizer.zero_grad()
            F.cross_entropy(made(x), y).backward()
            optimizer.step()
    assert torch.equal(made.get_parameter("4.bias")[gone], first["4.bias"][gone])
    assert not torch.equal(made.get_parameter("4.bias")[~gone], first["4.bias"][~gone])


def test_tickets_leave_biases_that_only_follow_their_channel() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 6)
    first = copy.deepcopy(net.state_dict())
    masks = sc.prune(net, 0.5, unit="channel", example_inputs=x)
    assert int((~masks["0.bias"]).sum()) == 4
    made = sc.tickets.ticket(net, snapshot=first, kept="constant", removed="init")
    assert torch.equal(made.get_parameter("0.bias"), first["0.bias"])
    assert not torch.equal(made.get_parameter("0.weight"), first["0.weight"])
    optimizer = torch.optim.SGD(made.parameters(), lr=1.0, weight_decay=0.1)
    with sc.tickets.frozen(made, masks):
        made(x).square().sum().backward()
        optimizer.step()
    assert bool((made.get_parameter("0.bias") != first["0.bias"]).all())
    gone = ~masks["0.weight"]
    assert torch.equal(made.get_parameter("0.weight")[gone], first["0.weight"][gone])


def test_frozen_holds_what_a_mask_names() -> None:
    net = nn.Linear(2, 1)
    before = net.bias.item()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with sc.tickets.frozen(net, {"bias": torch.tensor([False])}):
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert net.bias.item() == before


def test_reconstruction_towards_the_dense_model_counts_what_a_removed_bias_leaves() -> None:
    """Layer by layer against the dense model, recomputed from outputs."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    dense, x = copy.deepcopy(net), torch.randn(300, 8, dtype=torch.float64)
    sc.prune(net, 0.5, targets=BOTH, criterion="random", seed=1)
    assert 0 < int(torch.count_nonzero(net.get_parameter("0.bias"))) < 16
    pruned = copy.deepcopy(net)
    done = sc.reconstruct(net, data=x, match="dense", damping=0.0, progress=False)
    whole = x @ dense.get_parameter("0.weight").T
    assert done.layers[0].before == pytest.approx((dense[0](x) - pruned[0](x)).norm().item() / whole.norm().item())
    for depth, (name, layer) in enumerate(zip(("0", "2"), done.layers, strict=True)):
        wanted, found = (model[: 2 * depth + 1](x) for model in (dense, net))
        whole = wanted - dense.get_parameter(f"{name}.bias")
        assert layer.after == pytest.approx((wanted - found).norm().item() / whole.norm().item(), rel=1e-6)
        assert layer.before > layer.after
    with pytest.raises(ValueError, match=r"'0.bias' is a bias: reconstruction solves for weights"):
        sc.reconstruct(net, data=x, targets=BOTH)


def test_files_costs_edits_and_packed_models_know_them(tmp_path: Path) -> None:
    net = make_net().float().eval()
    x = torch.randn(3, 1, 6, 6)
    masks = sc.prune(net, 0.5, criterion="random", seed=3, targets=BOTH)
    assert all(0 < int(masks[name].sum()) < masks[name].numel() for name in NAMES)
    sc.save(net, tmp_path / "net.safetensors")
    again = make_net().float().eval()
    sc.load(tmp_path / "net.safetensors", again)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))
    found = sc.find_masks(again)
    assert found is not None
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    weights = int(masks["4.weight"].sum() + masks["6.weight"].sum() + 16 * masks["0.weight"].sum())
    cost = sc.measure(make_net().float(), net, example_inputs=x).sparse
    assert cost.macs_kept == weights, "no multiply-adds of a bias"
    assert cost.kept == sum(int(mask.sum()) for mask in masks.values()) + 8, "with the batch norm's"
    torch.testing.assert_close(sc.pack(net, x)(x), net(x))
    sc.reconstruct(net, data=[x])
    masks.check()


def test_costs_of_channels_refuse_single_weights() -> None:
    net, x = make_net().float(), torch.randn(1, 1, 6, 6)
    with pytest.raises(ValueError, match=r"costs\('macs'\) counts coupled channels, and '0.weight'.*unit='channel'"):
        sc.prune(net, 0.5, allocation=sc.knapsack(sc.costs(net, "macs", x)))
