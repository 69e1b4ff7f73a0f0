"""Catalogue section 5: worked numbers of the knapsack and of layer-collapse protection; OWL and scans by arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.core import allocate, parse_unit
from secateur.core.knapsack import best_subset, greedy_subset
from secateur.types import AllocationEntry, KeyLayout

COSTS, IMPORTANCE = (6, 5, 5, 3), (7.0, 5.5, 5.5, 2.0)


def _four_layers() -> nn.ModuleList:
    """Layers whose largest weights are the importances of [N,D7]; as units they are whole layers."""
    layers = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in COSTS])
    for layer, importance in zip(layers, IMPORTANCE, strict=True):
        layer.weight.data = torch.tensor([[0.5, -0.25], [-importance, 0.125]])
    return layers


@pytest.mark.parametrize(("how", "kept", "importance"), [("exact", [1, 2], 11.0), ("greedy", [0, 3], 9.0)])
def test_d7_knapsack(how: str, kept: list[int], importance: float) -> None:
    subset = best_subset if how == "exact" else greedy_subset
    assert subset(COSTS, IMPORTANCE, 10) == kept
    assert sum(IMPORTANCE[at] for at in kept) == importance
    net = _four_layers()
    calls: list[int] = []

    def cost(keep: dict[str, Tensor]) -> int:
        calls.append(sum(COSTS[int(key[0])] * int(mask.sum()) for key, mask in keep.items()))
        return calls[-1]

    masks = sc.prune(
        net, 1 - 10 / 19, criterion="linf", unit="layer", targets=["0", "1", "2", "3"], min_density=None,
        allocation=sc.knapsack(cost, how=how),  # type: ignore[arg-type]
    )  # fmt: skip
    assert [at for at, layer in enumerate(net) if bool(layer.weight.any())] == kept
    assert calls[0] == 19
    masks.undo()
    assert all(bool(layer.weight.all()) for layer in net)


def test_e4_protection_keeps_what_the_catalogue_says() -> None:
    scores = {
        "a": torch.tensor([[0.01, 0.02, 0.015, 0.012]]),
        "b": torch.tensor([[1.0, 2, 3, 4], [0.5, 0.6, 0.7, 0.8]]),
    }
    net = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(4, 2, bias=False))
    for layer, score in zip(net, scores.values(), strict=True):
        layer.weight.data = score.clone()
    sc.prune(net, 4 / 12, min_density=None)
    assert [at for at in range(12) if not torch.cat([p.flatten() for p in net.parameters()])[at]] == [0, 1, 2, 3]
    sc.find_masks(net).undo()  # type: ignore[union-attr]
    sc.prune(net, 4 / 12)
    removed = [at for at in range(12) if not torch.cat([p.flatten() for p in net.parameters()])[at]]
    assert removed == [0, 2, 3, 8]


@pytest.mark.parametrize(("sparsity", "keep", "outlier", "spread"), [(0.5, 8, 2.0, 0.125), (0.75, 4, 2.0, 0.25)])
def test_owl_by_arithmetic(sparsity: float, keep: int, outlier: float, spread: float) -> None:
    """D = (0, 1/8): densities S +- spread, as layers are of one size."""
    flat, peaked = torch.ones(1, 8), torch.tensor([[1.0, 1, 1, 1, 1, 1, 1, 9]])
    layout = {"flat": KeyLayout((1, 8)), "peaked": KeyLayout((1, 8))}
    counts = allocate(
        f"owl(outlier={outlier}, spread={spread})", sparsity=sparsity, scores={"flat": flat, "peaked": peaked},
        layout=layout, unit=parse_unit("weight")[0], min_density=None,
    )  # fmt: skip
    low, high = 8 * (1 - sparsity - spread), 8 * (1 - sparsity + spread)
    assert counts == {"flat": round(low), "peaked": round(high)}
    assert sum(counts.values()) == keep


def test_owl_in_a_network_follows_its_definition() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30, bias=False), nn.Linear(30, 10, bias=False), nn.Linear(10, 4, bias=False))
    net[1].weight.data[0] *= 30
    weights = [p.detach().double().abs() for p in net.parameters()]
    shares = [sum(float(x) > 3.0 * float(w.mean()) for x in w.flatten()) / w.numel() for w in weights]
    raised = [2 * 0.1 * (share - min(shares)) / (max(shares) - min(shares)) for share in shares]
    sizes = [w.numel() for w in weights]
    level = (0.4 * sum(sizes) - sum(r * n for r, n in zip(raised, sizes, strict=True))) / sum(sizes)
    masks = sc.prune(net, 0.6, allocation="owl(outlier=3.0, spread=0.1)")
    kept = [masks.kept(name) for name in masks]
    assert all(abs(k - (r + level) * n) <= 1 for k, r, n in zip(kept, raised, sizes, strict=True))
    assert sum(kept) == round(0.4 * sum(sizes))
    with pytest.raises(ValueError, match="negative"):
        sc.prune(copy.deepcopy(net), 0.5, criterion="small_final", allocation="owl")
    with pytest.raises(ValueError, match=r"spread=0\.7"):
        sc.prune(copy.deepcopy(net), 0.5, allocation="owl(spread=0.7)")


def test_e3_hans_threshold_of_standard_deviations() -> None:
    def han(weight: Mapping[str, Tensor], *, quality: float = 0.5) -> dict[str, int]:
        found.update({name: float(w.double().std(unbiased=False)) for name, w in weight.items()})
        return {name: int((w.abs() >= quality * found[name]).sum()) for name, w in weight.items()}

    found: dict[str, float] = {}
    net = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.1, -0.2, 0.05, 0.4, -0.6, 0.02, 0.3, -0.01]]))
    rule = AllocationEntry(han, "|w| < q std(layer)", "Han et al. 2015, arXiv 1506.02626", own_total=True)
    masks = sc.prune(net, 0.9, allocation=rule, targets="weight")
    assert found["weight"] == pytest.approx(0.287782, abs=5e-7)
    assert (~masks["weight"]).flatten().nonzero().flatten().tolist() == [0, 2, 5, 7]
