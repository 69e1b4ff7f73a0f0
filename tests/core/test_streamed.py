"""Selection by passes over pieces gives what a stable sort of everything gives, whatever the pieces."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.core import CRITERIA, allocate, check_scores, decide, needs, parse_unit, select
from secateur.core.allocations import global_
from secateur.core.bit_masks import BitMasks, all_kept
from secateur.core.border import Pool, border
from secateur.core.score import score
from secateur.core.streamed import Streamed, in_pieces, left_over, pieces_of
from secateur.core.streamed_score import streamed_score
from secateur.types import NM, CriterionEntry, KeyLayout

VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 3e38, -3e38, 1.0 + 2**-23, 2.0**-126, 7.0, 7.0])
LISTS = st.lists(VALUES, min_size=0, max_size=12)
ELEMENTWISE = [name for name, entry in CRITERIA.items() if entry.elementwise]


@pytest.fixture(autouse=True, scope="module")
def short_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secateur.core.streamed.PIECE", 5)
        patch.setattr("secateur.core.top.PIECE", 5)
        patch.setattr(sys.modules["secateur.core.select"], "_SMALL", 7)
        yield


def _kept_by_sorting(scores: dict[str, Tensor], keep: int, floors: dict[str, int]) -> dict[str, int]:
    """Python's stable sort over (score) in pool order, the highest ``floors`` of each key taken out first."""
    kept, pool = dict(floors), list[tuple[float, str]]()
    for key, values in scores.items():
        ascending = sorted(values.tolist())
        pool += [(value, key) for value in _without_last(values.tolist(), ascending[len(ascending) - floors[key] :])]
    pool.sort(key=lambda one: one[0])  # stable: of equal scores the first in order goes first
    for _, key in pool[len(pool) - (keep - sum(floors.values())) :]:
        kept[key] += 1
    return kept


def _without_last(values: list[float], safe: list[float]) -> list[float]:
    left = list(reversed(values))
    for value in safe:
        left.remove(value)
    return list(reversed(left))


@settings(max_examples=60, deadline=None)
@given(st.lists(LISTS, min_size=1, max_size=4), st.sampled_from([torch.float32, torch.float64]), st.data())
def test_one_pool_keeps_what_a_stable_sort_keeps(lists: list[list[float]], dtype: torch.dtype, data: Any) -> None:
    scores = {str(at): torch.tensor(values, dtype=dtype) for at, values in enumerate(lists)}
    floors = {key: data.draw(st.integers(0, len(values))) for key, values in scores.items()}
    keep = data.draw(st.integers(sum(floors.values()), sum(map(len, lists))))
    assert global_(scores, keep, floors) == _kept_by_sorting(scores, keep, floors)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=30), st.sampled_from([torch.float32, torch.float64]), st.data())
def test_pieces_are_selected_like_the_whole(values: list[float], dtype: torch.dtype, data: Any) -> None:
    flat = torch.tensor(values, dtype=dtype)
    keep = data.draw(st.integers(0, len(values)))
    streamed = Streamed({"a": (len(values),)}, {"a": lambda: in_pieces(flat)})
    expected = torch.ones(len(values), dtype=torch.bool)
    order = sorted(range(len(values)), key=lambda at: values[at])
    expected[order[: len(values) - keep]] = False
    assert torch.equal(select(streamed, {"a": keep})["a"], expected)
    assert torch.equal(select({"a": flat}, {"a": keep})["a"], expected)  # the whole tensor, longer than a piece or not
    alive = torch.tensor([data.draw(st.booleans()) for _ in values])
    some = data.draw(st.integers(0, int(alive.sum())))
    order = [at for at in order if alive[at]]
    expected[:] = False
    expected[order[len(order) - some :]] = True
    for scores in (streamed, {"a": flat}):
        assert torch.equal(select(scores, {"a": some}, previous={"a": alive})["a"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_border_is_the_kth_of_a_sort(dtype: torch.dtype) -> None:
    scores = torch.randn(4_000, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(
        4_000
    ).sub(2_000).div(100)
    ordered = sorted(scores.tolist(), reverse=True)
    for keep in (1, 2, 777, 2_000, 3_999, 4_000):
        assert border([Pool(lambda: iter([scores]))], keep, dtype) == ordered[keep - 1]
        assert keep > 3_000 or border([Pool(lambda: iter(scores.split(99)), 1_000)], keep, dtype) == ordered[999 + keep]


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("previous", [False, True])
def test_elementwise_criteria_decide_as_their_whole_scores_do(name: str, previous: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (3, 4), "b": (4, 2, 3, 1), "c": (2, 3)}
    kinds = {"a": "linear", "b": "conv", "c": "linear"}
    layout = {key: KeyLayout(shape, kinds[key]) for key, shape in shapes.items()}  # type: ignore[arg-type]
    made = {
        kind: {key: torch.randint(-3, 4, shape, generator=generator).float() for key, shape in shapes.items()}
        for kind in needs(CRITERIA[name].function)
    }
    for kind in {"input_norm", "input_sum", "output_sum"} & set(made):  # which are above 0 where a weight is
        made[kind] = {key: 1.0 + tensor.abs() for key, tensor in made[kind].items()}
    made["weight"] = {k: torch.randn(s, generator=generator) for k, s in shapes.items()}
    made["weight"]["b"] = made["weight"]["b"].to(memory_format=torch.channels_last)
    unit, _ = parse_unit("weight")
    whole = score(name, made, layout, unit)
    lazy = streamed_score(name, made, layout, unit)
    assert isinstance(lazy, Streamed)
    assert all(torch.equal(whole[key], lazy[key]) and lazy[key].dtype == whole[key].dtype for key in whole)
    before = {key: torch.rand(shape, generator=generator) < 0.8 for key, shape in shapes.items()} if previous else None
    for allocation in ("global", "uniform", "erk"):
        masks = decide(
            criterion=name, unit=unit, allocation=allocation, within="tensor", sparsity=0.6, evidence=made,
            layout=layout, previous=before,
        )  # fmt: skip
        keep = allocate(allocation, sparsity=0.6, scores=whole, layout=layout, unit=unit, previous=before)
        assert all(torch.equal(masks[key], mask) for key, mask in select(whole, keep, previous=before).items())
    pattern = decide(
        criterion=name, unit=NM(2, 4), allocation="global", within="tensor", sparsity=None, evidence=made, layout=layout
    )
    assert all(torch.equal(pattern[k], m) for k, m in select(whole, {}, within=NM(2, 4), layout=layout).items())


@pytest.mark.parametrize("spec", ["large_init_large_final(by='rank')", "small_init_small_final(by='rank')"])
def test_settings_that_compare_weights_see_whole_tensors(spec: str) -> None:
    generator = torch.Generator().manual_seed(2)
    layout = {"a": KeyLayout((4, 6), "linear")}
    evidence = {kind: {"a": torch.randn(4, 6, generator=generator)} for kind in ("weight", "init")}
    unit, _ = parse_unit("weight")
    whole = score(spec, evidence, layout, unit)
    assert torch.equal(streamed_score(spec, evidence, layout, unit)["a"], whole["a"])
    masks = decide(
        criterion=spec, unit=unit, allocation="uniform", within="tensor", sparsity=0.5, evidence=evidence, layout=layout
    )
    assert torch.equal(masks["a"], select(whole, {"a": 12})["a"])


def test_a_criterion_that_is_not_elementwise_is_run_once_on_whole_tensors() -> None:
    calls: list[tuple[int, ...]] = []

    def centred(weight: Tensor) -> Tensor:
        calls.append(tuple(weight.shape))
        return (weight - weight.mean()).abs()

    evidence = {"weight": {"a": torch.arange(12.0).reshape(3, 4)}}
    masks = decide(
        criterion=CriterionEntry(centred, "weight", "mean", "none", "", ""), unit="weight", allocation="global",
        within="tensor", sparsity=0.5, evidence=evidence, layout={"a": KeyLayout((3, 4))},
    )  # fmt: skip
    assert calls == [(3, 4)]
    assert masks["a"].flatten().tolist() == [True] * 3 + [False] * 6 + [True] * 3


def test_scores_without_order_are_found_in_any_piece() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        values = torch.zeros(13)
        values[11] = bad
        streamed = Streamed({"fc": (13,)}, {"fc": lambda values=values: in_pieces(values)})
        with pytest.raises(ValueError, match=r"'fc': [01] of 13 are NaN and [01] infinite"):
            check_scores(streamed)


def test_a_pass_is_short_pieces_and_starts_anew() -> None:
    passes = pieces_of({"a": torch.arange(12.0)}, "a")
    assert [piece.tolist() for piece in passes()] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert sum(map(len, passes())) == 12
    kept = left_over({"a": torch.arange(12.0)}, {"a": torch.arange(12) % 3 == 0})
    assert [piece.tolist() for piece in kept.pieces("a")] == [[0, 3], [6, 9], []]
    assert kept["a"].tolist() == [0, 3, 6, 9]


def test_bit_masks_read_like_a_dict_and_own_their_bits() -> None:
    given_mask = torch.tensor([[True, False, True]])

    def one_by_one() -> Iterator[tuple[str, Tensor]]:
        yield "a", given_mask
        yield "b", torch.zeros(11, dtype=torch.bool)

    masks = BitMasks(one_by_one())
    given_mask[:] = False
    masks["a"][:] = False
    assert masks["a"].tolist() == [[True, False, True]]
    assert (len(masks), list(masks), masks.count("a"), masks.count("b")) == (2, ["a", "b"], 2, 0)
    other = masks.replaced({"b": torch.ones(11, dtype=torch.bool), "c": torch.ones(0, dtype=torch.bool)})
    assert (masks.count("b"), other.count("b"), other["c"].shape, list(other)) == (0, 11, (0,), ["a", "b", "c"])
    assert list(other.chosen(["c", "a"])) == ["c", "a"]
    assert all_kept(parse_unit("filter")[0], {"x": KeyLayout((3, 2))})["x"].tolist() == [True] * 3
