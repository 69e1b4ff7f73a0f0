"""``sc.score`` and ``sc.prune`` on networks, against a slow float64 oracle and the catalogue's numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.types import NM


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))


def clusters(seed: int = 0, count: int = 600) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 20, generator=g) * 1.2
    y = torch.randint(0, 5, (count,), generator=g)
    return centres[y] + torch.randn(count, 20, generator=g), y


def globally_removed(scores: dict[str, Tensor], sparsity: float) -> set[tuple[str, int]]:
    """The plain definition: sort everything once, stably, and take the first floor(S N + 0.5)."""
    flat = [(float(v), i, name) for i, (name, t) in enumerate(scores.items()) for v in t.flatten().tolist()]
    places = [(name, j) for name, t in scores.items() for j in range(t.numel())]
    order = sorted(range(len(flat)), key=lambda i: (flat[i][0], i))
    return {places[i] for i in order[: math.floor(sparsity * len(flat) + 0.5)]}


def test_snip_is_weight_times_gradient_by_hand():
    net, (x, y) = mlp().double(), clusters(count=50)
    x = x.double()
    scores = sc.score(net, "snip", data=(x, y), loss=F.cross_entropy)
    F.cross_entropy(net(x), y).backward()
    for name in scores:
        p = net.get_parameter(name)
        torch.testing.assert_close(scores[name], (p * p.grad).abs().detach())


@pytest.mark.parametrize("sparsity", [0.0, 0.013, 0.5, 0.9, 0.997])
def test_global_magnitude_removes_exactly_the_smallest(sparsity: float):
    net = mlp()
    scores = {n: p.detach().abs().double() for n, p in net.named_parameters() if p.dim() > 1}
    expected = globally_removed(scores, sparsity)
    masks = sc.prune(net, sparsity, min_density=None)
    removed = {(n, int(i)) for n in masks for i in (~masks[n]).flatten().nonzero()}
    assert removed == expected
    assert all((net.get_parameter(n)[~masks[n]] == 0).all() for n in masks)


def test_ties_go_in_order_of_position():
    net = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[1].weight.fill_(1.0)
    masks = sc.prune(net, 0.25)
    assert masks["0.weight"].flatten().tolist() == [False] * 3 + [True] * 5
    assert masks["1.weight"].all()


def test_the_worked_snip_example_through_the_public_function():
    """Catalogue 4.2 [N, W3]: the gradient-only variant and SNIP itself drop different weights."""
    g = torch.tensor([1.2, -2.4, 0.8, 3.6, -1.8, 0.4, 2.8, 1.4], dtype=torch.float64)
    w = torch.tensor([0.1, -0.2, 0.5, 0.05, 0.3, -0.6, 0.01, 0.2], dtype=torch.float64)

    def make() -> nn.Linear:
        net = nn.Linear(8, 1, bias=False).double()
        with torch.no_grad():
            net.weight.copy_(w[None])
        return net

    data = (g[None], torch.zeros(1))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return output.sum()  # its gradient is the input itself

    removed = (~sc.prune(make(), 0.5, criterion="grad_magnitude", data=data, loss=loss)["weight"]).flatten().nonzero()
    assert removed.flatten().tolist() == [0, 2, 5, 7]
    net = make()
    scores = sc.score(net, "snip", data=data, loss=loss)["weight"].flatten()
    expected = torch.tensor([0.12, 0.48, 0.4, 0.18, 0.54, 0.24, 0.028, 0.28], dtype=torch.float64)
    torch.testing.assert_close(scores, expected)
    removed = (~sc.prune(net, 0.5, criterion="snip", data=data, loss=loss)["weight"]).flatten().nonzero()
    assert removed.flatten().tolist() == [0, 3, 5, 6]


def test_the_worked_norms_through_the_public_function():
    """Catalogue 1 [N, W1]."""
    w = [[[[1, -2], [3, 0]], [[0, 0], [0.5, -0.5]]], [[[-1, 1], [-1, 1]], [[2, 2], [-2, 2]]]]
    net = nn.Sequential(nn.Conv2d(2, 2, 2, bias=False), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(w))

    def of(criterion: str, unit: str, reduce: str | None = None) -> list[float]:
        scores = sc.score(net, criterion, unit=unit, targets="0", reduce=reduce)  # type: ignore[arg-type]
        return [round(v, 6) for v in scores["0.weight"].flatten().tolist()]

    assert of("l1", "filter", "sum") == [7, 12]
    assert of("l1", "in_channel", "sum") == [10, 9]
    assert of("l1", "kernel", "sum") == [6, 1, 4, 8]
    assert of("l1", "kernel") == [1.5, 0.25, 1, 2]
    assert of("l1", "row", "sum") == [3, 3, 0, 1, 2, 2, 4, 4]
    assert of("l1", "column", "sum") == [4, 2, 0.5, 0.5, 2, 2, 4, 4]
    assert of("l2", "filter", "l2") == [3.807887, 4.472136]
    assert of("l2", "kernel", "l2") == [3.741657, 0.707107, 2, 4]
    assert of("l0", "filter", "sum") == [5, 8]
    assert of("l0", "kernel", "sum") == [3, 2, 4, 4]
    assert of("linf", "filter") == [3, 2]


def test_layer_collapse_is_prevented_unless_asked_for():
    """Catalogue 5 [N, E4]: four of twelve, two layers of different scale."""

    def make() -> nn.Sequential:
        net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 4, bias=False))
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([[0.01, 0.02], [0.015, 0.012]]))
            net[1].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.5, 0.6], [0.7, 0.8]]))
        return net

    bare = sc.prune(make(), 4 / 12, min_density=None)
    assert bare.kept("0.weight") == 0
    kept = sc.prune(make(), 4 / 12)
    assert (~kept["0.weight"]).flatten().nonzero().flatten().tolist() == [0, 2, 3]
    assert (~kept["1.weight"]).flatten().nonzero().flatten().tolist() == [4]


def test_erk_through_the_public_function():
    """Catalogue 5 [N, A1]: LeNet-300-100 at density .1 keeps 18714.3, 6905.7 and 1000."""
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    masks = sc.prune(net, 0.9, allocation="erk")
    assert [masks.kept(n) for n in masks] == [18714, 6906, 1000]


def test_magnitude_at_initialisation_empties_the_widest_layer():
    """Catalogue 4.8: kept per layer at density .01 is 0, 2208, 454 with torch's default initialisation."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    masks = sc.prune(net, 0.99, min_density=None)
    assert [masks.kept(n) for n in masks] == [0, 2208, 454]


@pytest.mark.parametrize("within", ["row", NM(2, 4), NM(1, 4)])
def test_windows(within: str | NM):
    net = mlp()
    scores = {n: p.detach().abs() for n, p in net.named_parameters() if p.dim() > 1}
    choices = {"sparsity": 0.5, "allocation": "uniform"} if within == "row" else {}
    masks = sc.prune(net, within=within, **choices)  # type: ignore[arg-type]
    for name, score in scores.items():
        for row, kept in zip(score, masks[name], strict=True):
            window = len(row) if within == "row" else within.of  # type: ignore[union-attr]
            stay = len(row) - math.floor(0.5 * len(row) + 0.5) if within == "row" else within.keep  # type: ignore[union-attr]
            for start in range(0, len(row) - window + 1, window):
                part, mask = row[start : start + window], kept[start : start + window]
                assert int(mask.sum()) == stay
                assert part[mask].min() >= part[~mask].max()


def test_pruning_again_counts_from_the_dense_network_and_nothing_returns():
    net = mlp()
    first = sc.prune(net, 0.5)
    before = {n: first[n].clone() for n in first}
    again = sc.prune(net, 0.8, criterion="random", seed=3)
    assert again is first
    assert abs(again.shares().units - 0.8) < 1e-3
    assert all(not (again[n] & ~before[n]).any() for n in before)


def test_pruning_further_targets_joins_the_masks():
    net = mlp()
    masks = sc.prune(net, 0.5, targets="0")
    assert list(masks) == ["0.weight"]
    sc.prune(net, 0.5, targets="2")
    assert set(masks) == {"0.weight", "2.weight"}
    assert masks.kept("0.weight") == 640
    assert masks.kept("2.weight") == 1024


def test_another_unit_is_refused_and_changes_nothing():
    net = mlp()
    sc.prune(net, 0.5)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(ValueError, match="already has masks of unit 'weight'"):
        sc.prune(net, 0.5, unit="filter")
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_a_copy_leaves_the_original_alone():
    net = mlp()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    copy, masks = sc.prune(net, 0.9, inplace=False)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert sc.find_masks(net) is None
    assert sc.find_masks(copy) is masks
    assert copy is not net
    assert int((copy[0].weight == 0).sum()) > 0


def test_a_copy_of_a_pruned_model_carries_its_masks_and_its_removed_values():
    net = mlp()
    dense = {n: t.clone() for n, t in net.state_dict().items()}
    first = sc.prune(net, 0.5, targets="0")
    copy, masks = sc.prune(net, 0.5, targets="2", inplace=False)
    assert set(masks) == {"0.weight", "2.weight"}
    assert set(first) == {"0.weight"}
    assert torch.equal(masks["0.weight"], first["0.weight"])
    masks.undo()
    assert all(torch.equal(t, dense[n]) for n, t in copy.state_dict().items())
    first.check()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_name_the_parameter_and_change_nothing(bad: float):
    net = mlp()
    with torch.no_grad():
        net[2].weight[3, 4] = bad
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"2\.weight"):
        sc.prune(net, 0.5)
    assert sc.find_masks(net) is None
    assert all(torch.equal(t.nan_to_num(), before[n].nan_to_num()) for n, t in net.state_dict().items())


def test_gate_taylor_prunes_filters_and_refuses_finer_units():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3))
    data = (torch.randn(8, 1, 6, 6), torch.randint(0, 3, (8,)))
    scores = sc.score(net, "gate_taylor", unit="filter", data=data, loss=F.cross_entropy)
    assert {n: tuple(s.shape) for n, s in scores.items()} == {"0.weight": (6,)}
    masks = sc.prune(net, 0.5, criterion="gate_taylor", unit="filter", data=data, loss=F.cross_entropy)
    lowest = scores["0.weight"].argsort(stable=True)[:3].tolist()
    assert sorted((~masks.unit_masks["0.weight"]).nonzero().flatten().tolist()) == sorted(lowest)
    with pytest.raises(ValueError, match=r"gate_taylor.*weight"):
        sc.score(net, "gate_taylor", data=data, loss=F.cross_entropy)


def test_combined_ranks_are_an_average_of_ranks():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5))
    data = clusters(count=40)
    both = sc.score(net, sc.combine({"l1": 1.0, "snip": 1.0}), data=data, loss=F.cross_entropy)
    parts = [sc.score(net, c, data=data, loss=F.cross_entropy) for c in ("l1", "snip")]

    def ranks(scores: dict[str, Tensor]) -> Tensor:
        """Tied scores share the mean of their ranks."""
        values = torch.cat([s.flatten() for s in scores.values()]).tolist()
        below = {v: sum(u < v for u in values) + (values.count(v) - 1) / 2 for v in set(values)}
        return torch.tensor([below[v] for v in values], dtype=torch.float64) / (len(values) - 1)

    flat = torch.cat([s.flatten() for s in both.values()])
    torch.testing.assert_close(flat.double(), ranks(parts[0]) + ranks(parts[1]))


def test_scores_are_not_the_memory_of_the_model():
    net = mlp()
    before = net[0].weight.detach().clone()
    for value in sc.score(net, lambda weight: weight).values():
        value.zero_()
    assert torch.equal(net[0].weight, before)


def test_random_pruning_with_the_densities_of_another_method():
    """The control that separates where to prune from how much in each layer."""
    masks = sc.prune(mlp(), 0.8)
    control = sc.prune(mlp(), 0.8, criterion="random", allocation=lambda sizes: {n: masks.kept(n) for n in sizes})
    assert [control.kept(n) for n in control] == [masks.kept(n) for n in masks]
    assert any((control[n] != masks[n]).any() for n in masks)
