"""What holds for every input: exact counts, ties by position, bijection of unit masks, monotone schedules."""

from __future__ import annotations

import itertools
import math
from decimal import ROUND_HALF_UP, Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.core import (
    ALLOCATIONS,
    SCHEDULES,
    UNITS,
    allocate,
    format_spec,
    keep_top,
    parse_spec,
    parse_unit,
    removed_count,
    select,
    unit_sizes,
)
from secateur.core.allocations import lamp_scores
from secateur.core.apportion import apportion
from secateur.types import NM, KeyLayout
from tests.oracles.core_oracles import as_list, kept_by_sorting

SPECS = [name for name in UNITS if name not in ("block", "channel")] + ["block(2, 3)", "block(3, 1)"]
few = settings(deadline=None, max_examples=25)
many = settings(deadline=None, max_examples=50)
tied_scores = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


@st.composite
def layouts(draw: st.DrawFn) -> KeyLayout:
    kind = draw(st.sampled_from(["linear", "conv", "conv_transpose", "embedding"]))
    small = st.integers(1, 4)
    if kind in ("linear", "embedding"):
        return KeyLayout((draw(small), draw(small)), kind)  # type: ignore[arg-type]
    groups = draw(st.integers(1, 3))
    kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    return KeyLayout((groups * draw(small), draw(small), *kernel), kind, groups)  # type: ignore[arg-type]


@many
@given(tied_scores, st.data())
def test_selection_is_a_stable_sort_and_exact(scores: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, len(scores)))
    mask = as_list(keep_top(torch.tensor(scores, dtype=torch.float64), keep))
    assert mask == kept_by_sorting([float(x) for x in scores], keep)
    assert sum(mask) == keep


@few
@given(tied_scores, st.data())
def test_a_past_is_a_restriction_to_what_is_left(scores: list[int], data: st.DataObject) -> None:
    alive = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    keep = data.draw(st.integers(0, sum(alive)))
    flat = torch.tensor(scores, dtype=torch.float32)
    mask = as_list(select({"p": flat}, {"p": keep}, previous={"p": torch.tensor(alive)})["p"])
    lowest = [float(score) if lives else -math.inf for score, lives in zip(scores, alive, strict=True)]
    assert mask == kept_by_sorting(lowest, keep)


@few
@given(st.permutations(range(12)), st.integers(0, 12))
def test_selection_follows_a_permutation_of_distinct_scores(order: list[int], keep: int) -> None:
    scores = torch.arange(12).float() ** 2
    assert torch.equal(keep_top(scores[order], keep), keep_top(scores, keep)[order])


@many
@given(st.sampled_from([1, 10, 50, 250, 1000, 12_345]), st.integers(0, 1000).map(lambda k: Decimal(k) / 1000))
def test_counts_are_those_of_decimal_arithmetic(n: int, sparsity: Decimal) -> None:
    assert removed_count(n, float(sparsity)) == int((sparsity * n).to_integral_value(ROUND_HALF_UP))


@few
@given(st.integers(1, 1000), st.floats(0, 1), st.floats(0, 1))
def test_counts_grow_with_sparsity(n: int, first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert 0 <= removed_count(n, low) <= removed_count(n, high) <= n


@many
@given(layouts(), st.sampled_from(SPECS), st.integers(0, 2**31))
def test_unit_masks_survive_the_way_to_weights_and_back(layout: KeyLayout, spec: str, seed: int) -> None:
    unit, _ = parse_unit(spec)
    kept = torch.rand(unit.grid(layout), generator=torch.Generator().manual_seed(seed)) < 0.5
    weights = unit.expand({"p": kept}, {"p": layout})
    assert weights["p"].shape == layout.shape
    assert torch.equal(unit.pool(weights, {"p": layout})["p"], kept)
    # as numbers too: whatever is constant inside each unit has that constant as its mean and its maximum
    levels = {"p": weights["p"].double() * 3.0}
    assert torch.equal(unit.pool(levels, {"p": layout}, "max")["p"], kept.double() * 3.0)
    assert torch.allclose(unit.pool(levels, {"p": layout}, "mean")["p"], kept.double() * 3.0)


@few
@given(layouts(), st.sampled_from(SPECS), st.integers(0, 2**31))
def test_units_cover_every_weight_once(layout: KeyLayout, spec: str, seed: int) -> None:
    unit, _ = parse_unit(spec)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 9, layout.shape, generator=generator).double()
    assert unit.pool({"p": scores}, {"p": layout}, "sum")["p"].sum() == scores.sum()


@few
@given(st.permutations(range(5)), st.sampled_from(["filter", "kernel", "row", "column", "weight"]))
def test_pooling_follows_a_permutation_of_the_outputs(order: list[int], spec: str) -> None:
    layout = {"p": KeyLayout((5, 2, 3, 2), kind="conv")}
    scores = torch.arange(60.0).reshape(5, 2, 3, 2)
    unit, _ = parse_unit(spec)
    straight = unit.pool({"p": scores}, layout, "sum")["p"]
    assert torch.equal(unit.pool({"p": scores[order]}, layout, "sum")["p"], straight[order])


@few
@given(layouts(), st.integers(0, 2**31), st.sampled_from([NM(2, 4), NM(1, 2), NM(1, 3)]))
def test_every_full_group_of_n_of_m_keeps_n(layout: KeyLayout, seed: int, pattern: NM) -> None:
    scores = torch.randint(0, 3, layout.shape, generator=torch.Generator().manual_seed(seed)).float()
    mask = select({"p": scores}, {}, within=pattern, layout={"p": layout})["p"]
    inputs = layout.shape[0] // layout.groups if layout.kind == "conv_transpose" else layout.shape[1]
    lines = mask.numel() // inputs
    per_line = inputs // pattern.of * pattern.keep + inputs % pattern.of
    assert int(mask.sum()) == lines * per_line


@few
@given(st.integers(1, 6), st.integers(1, 9), st.data())
def test_rows_lose_the_same_number(rows: int, width: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, rows * width))
    if width == 1:
        return
    scores = torch.randint(0, 3, (rows, width), generator=torch.Generator().manual_seed(keep)).float()
    kept = select({"p": scores}, {"p": keep}, within="row")["p"].sum(1)
    assert len(set(kept.tolist())) == 1
    assert abs(int(kept[0]) - keep / rows) <= 0.5


@pytest.mark.parametrize("name", SCHEDULES)
@few
@given(ends=st.lists(st.floats(0, 0.99), min_size=2, max_size=2), steps=st.lists(st.floats(-0.5, 1.5), min_size=2))
def test_schedules_are_monotone_and_stay_inside(name: str, ends: list[float], steps: list[float]) -> None:
    initial, final = sorted(ends)
    values = [SCHEDULES[name].function(step, initial, final) for step in sorted(steps)]
    assert all(b - a >= -1e-12 for a, b in itertools.pairwise(values))
    assert all(initial <= value <= final for value in values)


@pytest.mark.parametrize("name", ALLOCATIONS)
@few
@given(
    sizes=st.lists(st.sampled_from([1, 2, 20]), min_size=1, max_size=4),
    sparsity=st.one_of(st.floats(0, 1), st.floats(0.3, 0.6)),
    share=st.sampled_from([None, 0.0, 0.5, 0.9]),  # of the density, as the least density
    seed=st.integers(0, 99),
)
def test_totals_floors_and_sizes(name: str, sizes: list[int], sparsity: float, share: float | None, seed: int) -> None:
    min_density = None if share is None else share * (1.0 - sparsity)
    layout = {f"k{place}": KeyLayout((size, 7)) for place, size in enumerate(sizes)}
    unit, _ = parse_unit("weight")
    generator = torch.Generator().manual_seed(seed)
    scores = {key: torch.randint(0, 4, one.shape, generator=generator).double() for key, one in layout.items()}
    units = unit_sizes(unit, layout)
    total = sum(units.values()) - removed_count(sum(units.values()), sparsity)
    floors = {
        key: 0 if min_density is None else max(1, math.ceil(min_density * n - 1e-12 * n)) for key, n in units.items()
    }
    call = {"sparsity": sparsity, "scores": scores, "layout": layout, "unit": unit, "min_density": min_density}
    if total < sum(floors.values()):
        with pytest.raises(ValueError, match="protection"):
            allocate(name, **call)
        return
    counts = allocate(name, **call)
    assert list(counts) == list(layout)
    assert all(floors[key] <= counts[key] <= n for key, n in units.items())
    if name != "uniform":
        assert sum(counts.values()) == total
    assert allocate(name, **call) == counts


@few
@given(st.lists(st.floats(0, 9), min_size=1, max_size=8))
def test_apportioned_counts_sum_and_stay_near(targets: list[float]) -> None:
    named = {str(place): target for place, target in enumerate(targets)}
    total = math.floor(sum(targets) + 0.5)
    caps = dict.fromkeys(named, 1000)
    scaled = {key: value * total / sum(targets) if sum(targets) else 0.0 for key, value in named.items()}
    counts = apportion(scaled, total, caps)
    assert sum(counts.values()) == total
    assert all(abs(counts[key] - value) < 1 + 1e-6 for key, value in scaled.items())


@few
@given(st.lists(st.integers(1, 99), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_lamp_ignores_the_scale_and_ends_at_one(values: list[int], scale: float) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    found = lamp_scores(scores)
    assert found.max().item() == 1.0
    assert torch.allclose(lamp_scores(scores * scale), found)
    assert bool((found[scores.argsort(stable=True)].diff() > 0).all())


literals = st.one_of(st.integers(-9, 9), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text())


@few
@given(st.lists(literals, max_size=3), st.dictionaries(st.sampled_from(["alpha", "power", "how"]), literals))
def test_specs_round_trip(args: list[object], kwargs: dict[str, object]) -> None:
    assert parse_spec(format_spec("name", args, kwargs)) == ("name", tuple(args), kwargs)
