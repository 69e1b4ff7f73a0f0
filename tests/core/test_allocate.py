from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from secateur.core import ALLOCATIONS, allocate, parse_unit, removed_count, select, unit_sizes
from secateur.core.allocations import lamp_scores
from secateur.core.apportion import apportion
from secateur.types import KeyLayout, Layout
from tests.oracles.core_oracles import erk_counts, global_counts, lamp_list

LAYOUT: Layout = {
    "conv1": KeyLayout((4, 1, 3, 3), kind="conv", role="first"),
    "conv2": KeyLayout((8, 4, 3, 3), kind="conv"),
    "fc": KeyLayout((20, 32)),
    "out": KeyLayout((10, 20), role="output"),
}
WEIGHT, _ = parse_unit("weight")
SIZES = unit_sizes(WEIGHT, LAYOUT)
N = sum(SIZES.values())


def _scores(seed: int = 0, levels: int = 50) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = {"conv1": 0.1, "conv2": 1.0, "fc": 0.5, "out": 2.0}
    return {
        key: torch.randint(0, levels, one.shape, generator=generator).double() * scale[key]
        for key, one in LAYOUT.items()
    }


def _flat(scores: dict[str, Tensor]) -> dict[str, list[float]]:
    return {key: value.flatten().tolist() for key, value in scores.items()}


@pytest.mark.parametrize("name", ["erk", "er"])
@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.8, 0.9, 0.99, 1.0])
def test_erk_and_er_against_bisection(name: str, sparsity: float) -> None:
    kept = N - removed_count(N, sparsity)
    counts = allocate(name, sparsity=sparsity, scores=_scores(), layout=LAYOUT, unit=WEIGHT, min_density=None)
    dims = [one.shape if name == "erk" else one.shape[:2] for one in LAYOUT.values()]
    exact = erk_counts([sum(d) / math.prod(d) for d in dims], list(SIZES.values()), kept)
    assert sum(counts.values()) == kept
    for count, target in zip(counts.values(), exact, strict=True):
        assert abs(count - target) < 1.0 + 1e-6


def test_erk_of_a_grouped_and_of_a_transposed_convolution() -> None:
    layout = {
        "grouped": KeyLayout((8, 2, 3, 3), "conv", groups=4),
        "turned": KeyLayout((8, 4, 3, 3), "conv_transpose"),
    }
    scores = {key: torch.rand(one.shape) for key, one in layout.items()}
    counts = allocate("erk", sparsity=0.5, scores=scores, layout=layout, unit=WEIGHT)
    assert counts["grouped"] / counts["turned"] == pytest.approx((8 + 2 + 6) / (8 + 4 + 6), rel=0.02)


@pytest.mark.parametrize("name", ["erk", "er", "uniform", "uniform_plus", "global", "lamp", "owl"])
def test_a_layer_without_weights_takes_no_part(name: str) -> None:
    layout = {"none": KeyLayout((0, 6)), "some": KeyLayout((3, 6)), "nothing": KeyLayout((3, 0))}
    scores = {key: torch.arange(1.0, math.prod(one.shape) + 1).reshape(one.shape) for key, one in layout.items()}
    counts = allocate(name, sparsity=0.5, scores=scores, layout=layout, unit=WEIGHT)
    assert counts == {"none": 0, "some": 9, "nothing": 0}


@pytest.mark.parametrize("min_density", [None, 0.0, 0.3])
@pytest.mark.parametrize("name", ["global", "lamp", *(f"global(normalise={how!r})" for how in ("mean", "max", "l2"))])
def test_one_pool_against_one_sort(name: str, min_density: float | None) -> None:
    scores = _scores(levels=5)
    kept = N - removed_count(N, 0.55)
    floors = {key: 0 if min_density is None else max(1, math.ceil(min_density * n)) for key, n in SIZES.items()}
    flat = _flat(scores)
    if name == "lamp":
        flat = {key: lamp_list(values) for key, values in flat.items()}
    elif name != "global":
        flat = {key: [value / _size(values, name) for value in values] for key, values in flat.items()}
    counts = allocate(name, sparsity=0.55, scores=scores, layout=LAYOUT, unit=WEIGHT, min_density=min_density)
    assert counts == global_counts(flat, kept, floors)


def _size(values: list[float], name: str) -> float:
    if "max" in name:
        return max(map(abs, values))
    return math.fsum(map(abs, values)) / len(values) if "mean" in name else math.hypot(*values)


def test_normalising_takes_the_size_of_a_layer_away_and_keeps_signs() -> None:
    layout = {"a": KeyLayout((1, 4)), "b": KeyLayout((1, 4)), "c": KeyLayout((1, 2))}
    scores = {"a": torch.tensor([[1.0, -2.0, 3.0, 6.0]]), "b": torch.tensor([[100.0, -200.0, 300.0, 601.0]])}
    scores["c"] = torch.zeros(1, 2)
    call = {"scores": scores, "layout": layout, "unit": WEIGHT, "min_density": None}
    assert allocate("global", sparsity=0.6, **call) == {"a": 1, "b": 3, "c": 0}
    assert allocate("global(normalise='mean')", sparsity=0.6, **call) == {"a": 2, "b": 2, "c": 0}
    assert allocate("global(normalise='max')", sparsity=0.2, **call) == {"a": 3, "b": 3, "c": 2}
    scores |= {"a": torch.tensor([[1.0, -2.0, 3.0, 6.0]]), "b": torch.tensor([[1.0, 2.0, 3.0, 6.5]])}
    assert allocate("global(normalise='mean')", sparsity=0.9, **call) == {"a": 0, "b": 1, "c": 0}, "6 / 3 < 6.5 / 3.125"
    with pytest.raises(
        ValueError, match=r"global\(normalise='lamp'\): take 'none', 'mean', 'max', 'l2', or allocation="
    ):
        allocate("global(normalise='lamp')", sparsity=0.5, **call)


def test_lamp_scores_in_a_large_and_in_an_empty_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(500, generator=generator)
    assert lamp_scores(weights).tolist() == pytest.approx(lamp_list(weights.tolist()), rel=1e-12)
    wide = torch.rand(20_000, generator=generator, dtype=torch.float64)
    top = wide.sort().values[-10:].tolist()
    found = lamp_scores(wide).sort().values[-10:].tolist()
    # total - cumsum is wrong in the twelfth digit here
    assert found == pytest.approx([top[i] ** 2 / math.fsum(x * x for x in top[i:]) for i in range(10)], rel=1e-14)
    steep = lamp_scores(torch.tensor([3e-12, 4e-12, 1.0, 2.0], dtype=torch.float64))
    assert steep.tolist() == pytest.approx([1.8e-24, 3.2e-24, 0.2, 1.0])
    assert lamp_scores(torch.full((4,), 1e-30)).tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1.0])
    assert lamp_scores(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="2 of the 3 scores of 'fc' are negative"):
        lamp_scores(torch.tensor([-1.0, 2.0, -3.0]), "fc")


def test_uniform_rounds_every_key_by_itself() -> None:
    counts = allocate("uniform", sparsity=0.9, scores=_scores(), layout=LAYOUT, unit=WEIGHT)
    assert counts == {key: n - removed_count(n, 0.9) for key, n in SIZES.items()}


def test_uniform_plus_exceptions() -> None:
    counts = allocate("uniform_plus", sparsity=0.5, scores=_scores(), layout=LAYOUT, unit=WEIGHT)
    kept = N - removed_count(N, 0.5)
    assert counts["conv1"] == 36
    assert sum(counts.values()) == kept
    assert counts["out"] / 200 == pytest.approx((kept - 36) / (N - 36), abs=0.01)  # above 20 %: no exception
    counts = allocate("uniform_plus", sparsity=0.88, scores=_scores(), layout=LAYOUT, unit=WEIGHT)
    assert counts["out"] == 40
    with pytest.raises(ValueError, match="76 of 1164 units, but only 12 may stay"):
        allocate("uniform_plus", sparsity=0.99, scores=_scores(), layout=LAYOUT, unit=WEIGHT)
    no_conv = {"fc": KeyLayout((20, 32), role="first"), "out": LAYOUT["out"]}
    scores = {key: _scores()[key] for key in no_conv}
    counts = allocate("uniform_plus", sparsity=0.5, scores=scores, layout=no_conv, unit=WEIGHT)
    assert counts == {"fc": 320, "out": 100}


@pytest.mark.parametrize("name", sorted(set(ALLOCATIONS) - {"uniform"}))
def test_protection_keeps_the_total(name: str) -> None:
    total = N - removed_count(N, 0.8)
    counts = allocate(name, sparsity=0.8, scores=_scores(), layout=LAYOUT, unit=WEIGHT, min_density=0.15)
    assert sum(counts.values()) == total
    assert all(counts[key] >= math.ceil(0.15 * n) for key, n in SIZES.items())
    bare = allocate(name, sparsity=0.8, scores=_scores(), layout=LAYOUT, unit=WEIGHT, min_density=None)
    assert sum(bare.values()) == total
    assert bare != counts or min(bare[key] / n for key, n in SIZES.items()) >= 0.15


def test_uniform_raises_small_layers_and_takes_from_large_ones() -> None:
    layout = {"tiny": KeyLayout((1, 3)), "wide": KeyLayout((10, 10))}
    scores = {key: torch.rand(one.shape) for key, one in layout.items()}
    counts = allocate("uniform", sparsity=0.9, scores=scores, layout=layout, unit=WEIGHT)
    assert counts == {"tiny": 1, "wide": 9}
    bare = allocate("uniform", sparsity=0.9, scores=scores, layout=layout, unit=WEIGHT, min_density=None)
    assert bare == {"tiny": 0, "wide": 10}


def test_protection_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ValueError, match=r"leaves 1 of 1164 units.*at least 4.*min_density=None"):
        allocate("global", sparsity=0.999, scores=_scores(), layout=LAYOUT, unit=WEIGHT)
    with pytest.raises(ValueError, match="0 to 1, or None"):
        allocate("global", sparsity=0.5, scores=_scores(), layout=LAYOUT, unit=WEIGHT, min_density=2.0)


def test_whole_layers_may_go() -> None:
    layer, _ = parse_unit("layer")
    scores = {key: torch.tensor([float(place)]) for place, key in enumerate(LAYOUT)}
    counts = allocate("global", sparsity=0.5, scores=scores, layout=LAYOUT, unit=layer)
    assert counts == {"conv1": 0, "conv2": 0, "fc": 1, "out": 1}


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("min_density", [None, 0.0, 0.05])
def test_removed_units_stay_removed_and_the_total_holds(name: str, min_density: float | None) -> None:
    scores = _scores()
    first = allocate("global", sparsity=0.5, scores=scores, layout=LAYOUT, unit=WEIGHT, min_density=min_density)
    before = select(scores, first)
    again = allocate(
        name, sparsity=0.6, scores=_scores(1), layout=LAYOUT, unit=WEIGHT, min_density=min_density, previous=before
    )
    assert all(again[key] <= first[key] for key in LAYOUT)
    assert abs(sum(again.values()) - (N - removed_count(N, 0.6))) <= (len(LAYOUT) if name == "uniform" else 0)
    after = select(_scores(1), again, previous=before)
    assert all(not bool((after[key] & ~before[key]).any()) for key in LAYOUT)


def test_dead_units_do_not_compete() -> None:
    layout = {"a": KeyLayout((1, 3)), "b": KeyLayout((1, 3))}
    scores = {"a": torch.tensor([[9.0, 8.0, 1.0]]), "b": torch.tensor([[3.0, 2.0, 1.0]])}
    before = {"a": torch.tensor([[False, False, True]]), "b": torch.ones(1, 3, dtype=torch.bool)}
    counts = allocate(
        "global", sparsity=0.5, scores=scores, layout=layout, unit=WEIGHT, previous=before, min_density=None
    )
    assert counts == {"a": 0, "b": 3}


def test_sparsity_below_what_is_gone_is_refused_but_rounding_is_not() -> None:
    scores = _scores()
    before = select(scores, allocate("uniform", sparsity=0.5, scores=scores, layout=LAYOUT, unit=WEIGHT))
    left = sum(int(mask.sum()) for mask in before.values())
    same = allocate("erk", sparsity=0.5, scores=scores, layout=LAYOUT, unit=WEIGHT, previous=before)
    assert sum(same.values()) == min(left, N - removed_count(N, 0.5))
    with pytest.raises(ValueError, match="removed units stay removed"):
        allocate("erk", sparsity=0.3, scores=scores, layout=LAYOUT, unit=WEIGHT, previous=before)


def test_an_allocation_by_hand() -> None:
    def all_from_fc(sizes: dict[str, int], keep: int, cost: dict[str, int]) -> dict[str, int]:
        return {**sizes, "fc": sizes["fc"] - (sum(sizes.values()) - keep) - cost["x"]}

    given = {"scores": _scores(), "layout": LAYOUT, "unit": WEIGHT, "sparsity": 0.25}
    counts = allocate(all_from_fc, evidence={"cost": {"x": 0}}, **given)  # type: ignore[arg-type]
    assert counts == {**SIZES, "fc": 640 - removed_count(N, 0.25)}
    with pytest.raises(ValueError, match=r"asks for \['cost'\]"):
        allocate(all_from_fc, **given)
    with pytest.raises(ValueError, match="units in all, but 873 are wanted"):
        allocate(all_from_fc, evidence={"cost": {"x": 9}}, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"keeps 9999 units of 'fc'"):
        allocate(lambda sizes: {**sizes, "fc": 9999}, **given)
    with pytest.raises(ValueError, match=r"counts for \['fc'\]"):
        allocate(lambda sizes: {"fc": 1}, **given)


def test_units_coarser_than_weights_share_by_their_number() -> None:
    unit, _ = parse_unit("filter")
    scores = {key: torch.rand(one.shape[0]) for key, one in LAYOUT.items()}
    for name in ALLOCATIONS:
        counts = allocate(name, sparsity=0.5, scores=scores, layout=LAYOUT, unit=unit)
        assert sum(counts.values()) == 21
        assert all(1 <= counts[key] <= one.shape[0] for key, one in LAYOUT.items())


def test_largest_remainder() -> None:
    caps = {"a": 5, "b": 5, "c": 5}
    assert apportion({"a": 1.2, "b": 1.5, "c": 1.3}, 4, caps) == {"a": 1, "b": 2, "c": 1}
    assert apportion({"a": 4.5, "b": 4.5, "c": 5.0}, 14, caps) == {"a": 5, "b": 4, "c": 5}
    assert apportion({"a": 2.9999999999999996, "b": 1.0, "c": 1.0}, 5, caps) == {"a": 3, "b": 1, "c": 1}
    assert apportion({"a": 5.0, "b": 0.0}, 7, {"a": 5, "b": 9}) == {"a": 5, "b": 2}
