"""Knapsacks against all subsets, and allocations against all counts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.core import allocate, parse_unit
from secateur.core.knapsack import best_subset, greedy_subset, knapsack
from secateur.types import KeyLayout

ITEMS = st.lists(st.tuples(st.integers(0, 12), st.floats(0.125, 10.0, width=16)), min_size=1, max_size=8)
UNIT = parse_unit("filter")[0]


def kept(scores: Mapping[str, Tensor], cost: object, sparsity: float, **options: object) -> dict[str, int]:
    layout = {key: KeyLayout((score.numel(), 1)) for key, score in scores.items()}
    return allocate(knapsack(cost, **options), sparsity=sparsity, scores=scores, layout=layout, unit=UNIT)


@given(ITEMS, st.integers(0, 40))
def test_the_exact_knapsack_is_the_best_of_all_subsets(items: list[tuple[int, float]], budget: int):
    costs, importance = [cost for cost, _ in items], [value for _, value in items]
    found = best_subset(costs, importance, budget)
    assert found == sorted(set(found))
    assert sum(costs[at] for at in found) <= budget
    best = max(
        sum(importance[at] for at in subset)
        for size in range(len(items) + 1)
        for subset in combinations(range(len(items)), size)
        if sum(costs[at] for at in subset) <= budget
    )
    assert sum(importance[at] for at in found) == pytest.approx(best)


def test_greedy_goes_by_importance_per_cost():
    assert greedy_subset([10, 1], [5.0, 4.0], 10) == [1]  # 4 per unit of cost, then 10 does not fit any more
    assert best_subset([10, 1], [5.0, 4.0], 10) == [0]


@given(ITEMS, st.integers(0, 40))
def test_greedy_fits_and_leaves_nothing_that_would(items: list[tuple[int, float]], budget: int):
    costs, importance = [cost for cost, _ in items], [value for _, value in items]
    found = greedy_subset(costs, importance, budget)
    left = budget - sum(costs[at] for at in found)
    assert left >= 0
    assert all(costs[at] > left for at in set(range(len(items))) - set(found))


@pytest.mark.parametrize("how", ["greedy", "exact"])
def test_what_costs_more_goes_first_at_equal_importance(how: str):
    """Six units each; two dear ones save what twenty cheap ones would."""
    scores = {"cheap": torch.full((6,), 1.0), "dear": torch.full((6,), 2.0)}
    found = kept(scores, lambda keep: float(keep["cheap"].sum() + 10 * keep["dear"].sum()), 1 / 3, how=how)
    assert found == {"cheap": 6, "dear": 3}  # 66 in all, 44 allowed; by importance alone all six cheap ones would go


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.8))
def test_the_exact_allocation_is_the_best_of_all_counts(seed: int, sparsity: float):
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(n, generator=generator) + 0.01 for name, n in (("a", 4), ("b", 3), ("c", 5))}
    price = {"a": 3, "b": 7, "c": 2}

    def cost(keep: Mapping[str, Tensor]) -> float:
        return sum(price[name] * int(mask.sum()) for name, mask in keep.items())

    budget = (1 - sparsity) * cost({name: torch.ones(len(score)) for name, score in scores.items()}) + 1e-9

    def value(counts: Mapping[str, int]) -> float:
        return sum(float(scores[name].sort(descending=True).values[:n].sum()) for name, n in counts.items())

    every = (
        dict(zip(scores, counts, strict=True)) for counts in product(*(range(1, len(s) + 1) for s in scores.values()))
    )
    allowed = [counts for counts in every if sum(price[name] * n for name, n in counts.items()) <= budget]
    if not allowed:
        with pytest.raises(ValueError, match="the least that every key may keep"):
            kept(scores, cost, sparsity, how="exact")
        return
    found = kept(scores, cost, sparsity, how="exact")
    assert sum(price[name] * n for name, n in found.items()) <= budget
    assert value(found) == pytest.approx(max(value(counts) for counts in allowed), abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.8))
def test_a_cost_that_is_not_additive_is_met_and_nothing_fits_back(seed: int, sparsity: float):
    """Products of neighbouring widths, as multiply-adds of a chain of layers."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(8, generator=generator) for name in "abc"}

    def of(a: int, b: int, c: int) -> float:
        return 5.0 * a + a * b + b * c + 3.0 * c

    def cost(keep: Mapping[str, Tensor]) -> float:
        return of(*(int(keep[name].sum()) for name in "abc"))

    found = kept(scores, cost, sparsity)
    budget = (1 - sparsity) * of(8, 8, 8) * (1 + 1e-9)
    assert of(*found.values()) <= budget
    for name, count in found.items():
        assert count == 8 or of(*(found | {name: count + 1}).values()) > budget


@pytest.mark.parametrize(
    ("cost", "options", "message"),
    [
        ("macs", {}, r"knapsack\('macs'\): a cost is a function.*sc\.costs"),
        (lambda keep: 1.0, {"how": "best"}, "take 'greedy' or 'exact'"),
        (lambda keep: 1.0, {"steps": 0}, "a whole number from 1"),
        (lambda keep: 1.0, {"steps": 2.5}, r"knapsack\(steps=2\.5\): parts of a key, a whole number from 1"),
        (lambda keep: float("nan"), {}, "has to give a finite number"),
        (lambda keep: 1.0, {}, "above"),
        (lambda keep: 0.5 * float(keep["a"].sum()), {"how": "exact"}, "takes whole numbers"),
    ],
)
def test_bad_costs_are_refused(cost: object, options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        kept({"a": torch.rand(4)}, cost, 0.5, **options)


@pytest.mark.parametrize("how", ["greedy", "exact"])
def test_sparsity_is_a_share_of_the_cost_where_units_are_protected_too(how: str):
    """A tenth of the cost is a third of each layer, more units than a tenth."""
    scores = {key: torch.arange(1.0, 11.0) for key in "ab"}
    layout = {key: KeyLayout((10, 1)) for key in scores}

    def cost(keep: Mapping[str, Tensor]) -> int:
        return int(keep["a"].sum()) * int(keep["b"].sum())

    row = knapsack(cost, how=how)
    counts = allocate(row, sparsity=0.9, scores=scores, layout=layout, unit=UNIT, min_density=0.3)
    assert min(counts.values()) >= 3
    assert counts["a"] * counts["b"] <= 10


def test_bad_steps_are_refused_when_the_row_is_made():
    for steps in (2.5, True, "4"):
        with pytest.raises(ValueError, match="a whole number from 1"):
            knapsack(lambda keep: 1.0, steps=steps)  # type: ignore[arg-type]


def test_the_exact_knapsack_takes_no_more_off_than_is_over():
    """Units that go make the others dearer here, so that the first choice costs 25 where 24.6 are allowed.

    All choices: (a, b) = (1, 4) costs 23 and is worth 30; (1, 3) costs 17 and is worth 28; (2, 2) costs 20, worth 26.
    """
    scores = {"a": torch.tensor([1.0, 4.0, 5.0]), "b": torch.tensor([2.0, 6.0, 8.0, 9.0])}

    def cost(keep: Mapping[str, Tensor]) -> int:
        a, b = (int(keep[key].sum()) for key in "ab")
        return 3 * a + 2 * b + 2 * a * b + 2 * (3 - a)

    assert kept(scores, cost, 0.4, how="exact") == {"a": 1, "b": 4}


def test_greedy_gives_back_no_unit_whose_score_is_negative():
    """A dear unit goes whole; what is left of the budget would take cheap ones back that do harm."""
    scores = {"cheap": torch.tensor([-3.0, -2.0, 1.0]), "dear": torch.tensor([0.5, 5.0])}

    def cost(keep: Mapping[str, Tensor]) -> float:
        return float(keep["cheap"].sum() + 10 * keep["dear"].sum())

    assert kept(scores, cost, 0.4, steps=1) == {"cheap": 1, "dear": 1}
    assert greedy_subset([1, 1, 1], [-1.0, 2.0, 0.0], 9) == [1, 2]
