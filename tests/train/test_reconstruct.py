"""Reconstruction through its public door, against a float64 oracle that runs the layers by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.model.evidence.stages import find_stages
from secateur.model.targets import find_targets


class Net(nn.Module):
    """Two layers that read the same input, a functional product, a convolution before them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 3, padding=1, groups=3)
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 8, bias=False)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).transpose(1, 2)
        return F.linear(torch.tanh(self.left(x)) * self.right(x), self.last.weight)


def _net(seed: int = 0) -> tuple[Net, list[Tensor]]:
    torch.manual_seed(seed)
    return Net().double(), [torch.randn(n, 3, 9).double() for n in (4, 3)]


def _inputs(net: Net, batches: list[Tensor]) -> dict[str, Tensor]:
    """What goes into each layer, as rows; of the convolution, windows of each group side by side."""
    found: dict[str, list[Tensor]] = {name: [] for name in ("conv", "left", "right", "last")}
    with torch.no_grad():
        for x in batches:
            padded = F.pad(x, (1, 1))
            found["conv"].append(torch.stack([padded[:, :, t : t + 3] for t in range(9)], 1).flatten(0, 1))
            hidden = F.relu(net.conv(x)).transpose(1, 2)
            for name in ("left", "right"):
                found[name].append(hidden.flatten(0, 1))
            found["last"].append((torch.tanh(net.left(hidden)) * net.right(hidden)).flatten(0, 1))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _best(dense: Tensor, kept: Tensor, x: Tensor, damping: float) -> Tensor:
    """Row by row: lstsq on inputs, with the damping as further rows of them."""
    level = (damping * x.square().sum(0).mean()) ** 0.5
    x = torch.cat([x, level * torch.eye(x.shape[1], dtype=x.dtype)])
    new = torch.zeros_like(dense)
    for row, mask in enumerate(kept):
        if bool(mask.any()):
            new[row, mask] = torch.linalg.lstsq(x[:, mask], (x @ dense[row])[:, None]).solution.flatten()
    return new


@pytest.mark.parametrize("sequential", [True, False, "block"])
def test_masks_of_any_unit_are_refitted_on_what_comes_in(sequential: Any) -> None:
    net, batches = _net()
    dense = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    masks = sc.prune(net, 0.5, unit="weight")
    before = _inputs(net, batches)
    done = sc.reconstruct(net, data=batches, sequential=sequential, damping=0.02)
    assert done.masks is masks
    inputs = before if sequential is False else _inputs(net, batches)  # what the layers see now, or what they saw
    assert [layer.name for layer in done.layers] == [f"{name}.weight" for name in before]
    for name, x in inputs.items():
        weight, mask, old = getattr(net, name).weight.detach(), masks[f"{name}.weight"], dense[f"{name}.weight"]
        if name == "conv":
            groups = zip(old.flatten(1).split(2), mask.flatten(1).split(2), x.unbind(1), strict=True)
            expected = torch.cat([_best(w, m, part, 0.02) for w, m, part in groups]).view_as(weight)
        else:
            expected = _best(old, mask, x, 0.02)
        if sequential != "block" or name == "conv":
            assert torch.allclose(weight, expected, atol=1e-9), name
        assert bool((weight[~mask] == 0).all())
    x, layer = inputs["last"], done.layers[-1]
    if sequential is True:
        assert torch.allclose(net.last.weight, _best(dense["last.weight"], masks["last.weight"], x, 0.02), atol=1e-9)
        old, new = x @ dense["last.weight"].T, x @ net.last.weight.detach().T
        assert layer.after == pytest.approx(float((old - new).norm() / old.norm()), rel=1e-9)
        masked = x @ (dense["last.weight"] * masks["last.weight"]).T
        assert layer.before == pytest.approx(float((old - masked).norm() / old.norm()), rel=1e-9)
    assert all(one.after < one.before for one in done.layers)
    masks.undo()
    assert all(torch.equal(tensor, dense[name]) for name, tensor in net.state_dict().items())


def test_a_second_refit_starts_from_the_dense_weights() -> None:
    net, batches = _net()
    sc.prune(net, 0.5)
    first = sc.reconstruct(net, data=batches)
    again = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    second = sc.reconstruct(net, data=batches)
    assert all(torch.allclose(tensor, again[name]) for name, tensor in net.state_dict().items())
    assert second.layers[-1].after == pytest.approx(first.layers[-1].after)


@pytest.mark.parametrize("solver", ["none", "refit", "sparsegpt", "obc"])
def test_solvers_choose_exactly_and_layer_by_layer(solver: str) -> None:
    net, batches = _net()
    done = sc.reconstruct(net, 0.6, data=batches, solver=solver)
    sizes = {name: key.shape for name, key in find_targets(net).items()}
    for name, shape in sizes.items():
        total = torch.Size(shape).numel()
        assert total - done.masks.kept(name) == int(0.6 * total + 0.5)
    if solver == "none":
        return
    plain, _ = _net()
    magnitude = sc.reconstruct(plain, 0.6, data=batches, solver="none", criterion="magnitude")
    assert sum(one.after for one in done.layers) < sum(one.after for one in magnitude.layers)


def test_wanda_is_chosen_on_pruned_inputs() -> None:
    net, batches = _net()
    dense = net.last.weight.detach().clone()
    done = sc.reconstruct(net, 0.5, data=batches, solver="none", within="row")
    scores = dense.abs() * _inputs(net, batches)["last"].norm(dim=0)
    expected = scores.argsort(1).argsort(1) >= 4
    assert torch.equal(done.masks["last.weight"], expected)


@pytest.mark.parametrize("solver", ["refit", "sparsegpt", "obc"])
def test_patterns(solver: str) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 8)).double(), torch.randn(40, 10).double()
    masks = sc.reconstruct(net, within=sc.NM(2, 4), data=x, solver=solver).masks
    assert bool((masks["0.weight"][:, :8].reshape(6, 2, 4).sum(2) == 2).all())
    assert bool(masks["0.weight"][:, 8:].all())  # a tail stays
    assert bool((masks["2.weight"][:, :4].sum(1) == 2).all())
    if solver == "obc":  # eliminating one by one ends in the best fit of what stays
        assert torch.allclose(net[0].weight, _best(_dense0(), masks["0.weight"], x, 0.01), atol=1e-8)


def _dense0() -> Tensor:
    torch.manual_seed(0)
    return nn.Linear(10, 6).double().weight.detach()


def test_obc_is_no_worse_than_sparsegpt_for_one_weight() -> None:
    for seed in range(20):
        errors = {}
        for solver in ("obc", "sparsegpt"):
            torch.manual_seed(seed)
            net, x = nn.Linear(6, 1, bias=False).double(), torch.randn(30, 6).double()
            errors[solver] = sc.reconstruct(net, 1 / 6, data=x, solver=solver, damping=0.0).layers[0].after
        assert errors["obc"] <= errors["sparsegpt"] + 1e-12


def test_what_earlier_masks_removed_stays_removed() -> None:
    for solver in ("refit", "sparsegpt", "obc"):
        net, batches = _net()
        masks = sc.prune(net, 0.3, allocation="uniform")
        first = {name: masks[name].clone() for name in masks}
        assert sc.reconstruct(net, 0.6, data=batches, solver=solver).masks is masks
        for name, mask in first.items():
            assert not bool((masks[name] & ~mask).any())
            assert mask.numel() - masks.kept(name) == int(0.6 * mask.numel() + 0.5)


def test_stages_follow_the_run() -> None:
    net, batches = _net()
    layout = find_targets(net)
    names = [
        [name.removesuffix(".weight") for name in stage.names]
        for stage in find_stages(net, layout, batches[0], None, True)
    ]
    assert names == [["conv"], ["left", "right"], ["last"]]
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)))
    stages = find_stages(blocks, find_targets(blocks), torch.ones(1, 4), None, "block")
    assert [len(stage.names) for stage in stages] == [2, 2]
    assert stages[0].later == {"1.0.weight", "1.1.weight"}


class Broken(nn.Module):
    """Its second layer is not read as a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.first(x), self.second.weight.softmax(1))


def test_nothing_is_changed_where_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Broken(), torch.randn(9, 4)
    old = net.first.weight.detach().clone()
    with pytest.raises(ValueError, match=r"'second\.weight' were not seen"):
        sc.reconstruct(net, 0.5, data=x)
    wide = nn.Sequential(nn.Linear(4, 20), nn.Linear(20, 2))
    before = [tensor.clone() for tensor in wide.parameters()]
    with pytest.raises(ValueError, match=r"'1\.weight': .*positive definite"):
        sc.reconstruct(wide, 0.1, data=torch.randn(9, 4), damping=0.0)  # the second layer's inputs have rank 5
    assert all(torch.equal(*pair) for pair in zip(before, wide.parameters(), strict=True))
    assert sc.find_masks(wide) is None
    masks = sc.prune(wide, 0.1)
    values, mask = [tensor.clone() for tensor in wide.parameters()], masks["0.weight"].clone()
    with pytest.raises(ValueError, match="positive definite"):
        sc.reconstruct(wide, 0.2, data=torch.randn(9, 4), damping=0.0)
    assert all(torch.equal(*pair) for pair in zip(values, wide.parameters(), strict=True))
    assert torch.equal(masks["0.weight"], mask)
    masks.undo()
    assert all(torch.equal(*pair) for pair in zip(before, wide.parameters(), strict=True))
    assert torch.equal(net.first.weight, old)


def test_bad_choices_are_refused() -> None:
    net, batches = _net()
    calls: list[tuple[dict[str, Any], str]] = [
        ({"data": None, "sparsity": 0.5}, "give data="),
        ({}, "this model has no masks"),
        ({"solver": "obc"}, "chooses weights itself"),
        ({"solver": "obx", "sparsity": 0.5}, "obx"),
        ({"sparsity": 0.5, "solver": "sparsegpt", "within": "row"}, "within='row' is for criteria"),
        ({"sparsity": 0.5, "within": sc.NM(2, 4)}, "the pattern fixes the sparsity"),
        ({"sparsity": 0.5, "damping": -1.0}, "damping=-1"),
        ({"within": sc.NM(2, 4), "solver": "sparsegpt"}, "along the inputs of linear layers"),
    ]
    for choices, message in calls:
        with pytest.raises(ValueError, match=message):
            sc.reconstruct(net, **{"data": batches, **choices})
    sc.prune(net, 0.5).commit()
    with pytest.raises(ValueError, match="give dense="):
        sc.reconstruct(net, data=batches)


class Squeezed(nn.Module):
    """A hidden layer whose channels may go; its reader has a bias or not."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_behind_channels_that_are_gone_makes_up_for_them(bias: bool) -> None:
    torch.manual_seed(0)
    net, x = Squeezed(bias).double(), torch.randn(60, 6).double()
    dense = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected, was = net(x).detach(), F.relu(net.first(x)).detach()
    masks = sc.prune(net, 0.5, unit="channel", example_inputs=x)
    done = sc.reconstruct(net, data=[x[:40], x[40:]], targets="second.weight", damping=1e-10)
    now = F.relu(net.first(x)).detach()
    left = masks["second.weight"].any(0)
    columns = [now[:, left], torch.ones(60, 1).double()] if bias else [now[:, left]]
    aim = was @ dense["second.weight"].T + (dense["second.bias"] if bias else 0.0)
    best = torch.cat(columns, 1) @ torch.linalg.lstsq(torch.cat(columns, 1), aim).solution
    assert torch.allclose(net(x).detach(), best, atol=1e-6)
    size = (was @ dense["second.weight"].T).norm()
    assert done.layers[0].after == pytest.approx(float((best - expected).norm() / size), rel=1e-5)
    masked = was * left
    assert done.layers[0].before == pytest.approx(float(((masked - was) @ dense["second.weight"].T).norm() / size))
    masks.check()
    masks.undo()
    assert all(torch.equal(tensor, dense[name]) for name, tensor in net.state_dict().items())


def test_matching_the_dense_model_corrects_what_came_before() -> None:
    off = {}
    for match in ("layer", "dense"):
        net, batches = _net()
        expected = [net(x).detach() for x in batches]
        sc.reconstruct(net, 0.5, data=batches, match=match, damping=1e-4)
        off[match] = sum(float((net(x).detach() - y).norm()) for x, y in zip(batches, expected, strict=True))
    assert off["dense"] < off["layer"]


def test_matching_a_model_that_was_not_changed_before_is_the_same() -> None:
    found = []
    for match in ("layer", "dense"):
        torch.manual_seed(0)
        net, x = nn.Linear(8, 4, bias=False).double(), torch.randn(30, 8).double()
        sc.reconstruct(net, 0.5, data=x, match=match, solver="obc")
        found.append(net.weight.detach())
    assert torch.allclose(*found, atol=1e-9)
