"""Orders of units against all orders there are, where these can be counted, and laws where they cannot."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.core.assign import assign
from secateur.core.nm_order import Slots, best_order, kept_score, slots_of, spread
from secateur.core.nm_readers import Reader, kept_by_pattern, order_for
from secateur.types import NM, KeyLayout

PATTERNS = st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4)])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 6).flatmap(lambda n: st.lists(st.lists(st.integers(-3, 3), min_size=n, max_size=n), min_size=n,
                                                    max_size=n)), st.booleans())  # fmt: skip
def test_an_assignment_is_the_best_of_all(rows: list[list[int]], smooth: bool) -> None:
    n = len(rows)
    gain = np.array(rows, np.float64).reshape(n, n)
    gain = gain + np.random.default_rng(0).normal(size=(n, n)) if smooth else gain
    found = assign(gain)
    assert sorted(found) == list(range(n))
    best = max(sum(gain[i, p[i]] for i in range(n)) for p in itertools.permutations(range(n)))
    assert gain[np.arange(n), found].sum() == pytest.approx(best)


def _best_by_subsets(gain: np.ndarray) -> float:
    """Row after row, the best for every set of columns that are taken."""
    best = {0: 0.0}
    for row in gain.tolist():
        there: dict[int, float] = {}
        for taken, value in best.items():
            for column, more in enumerate(row):
                if not taken >> column & 1:
                    key = taken | 1 << column
                    there[key] = max(there.get(key, -np.inf), value + more)
        best = there
    return best[(1 << len(gain)) - 1]


@pytest.mark.parametrize("seed", range(40))
def test_rows_that_want_the_same_columns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 9
    gain = np.outer(rng.random(n), rng.random(n)) + 0.2 * rng.random((n, n))
    found = assign(gain)
    assert sorted(found) == list(range(n))
    assert gain[np.arange(n), found].sum() == pytest.approx(_best_by_subsets(gain), abs=1e-12)


def test_a_large_assignment_finds_what_is_planted() -> None:
    rng = np.random.default_rng(1)
    planted, n = rng.permutation(200), 200
    gain = rng.random((n, n))
    gain[np.arange(n), planted] += 1.0  # above every other in its row and column
    assert (assign(gain) == planted).all()


def _kept(scores: Tensor, order: Any, keep: int, of: int) -> float:
    """By loops: of each row's groups of m neighbours the n largest, of a shorter tail all."""
    total = 0.0
    for row in scores[torch.as_tensor(order)].t().double().tolist():
        for start in range(0, len(row), of):
            group = sorted(row[start : start + of], reverse=True)
            total += sum(group if len(group) < of else group[:keep])
    return total


def _drawn(data: Any, units: int, rows: int) -> Tensor:
    values = st.sampled_from([0.0, 0.5, 1.0, 2.0, 2.0, 7.0, 1e-3])
    return torch.tensor(data.draw(st.lists(values, min_size=units * rows, max_size=units * rows))).view(units, rows)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 13), st.integers(1, 5), PATTERNS, st.integers(0, 3), st.data())
def test_an_order_is_a_bijection_that_keeps_no_less(
    units: int, rows: int, pattern: tuple[int, int], sweeps: int, data: Any
) -> None:
    keep, of = pattern
    scores = _drawn(data, units, rows)
    slots = slots_of(torch.arange(units), units, of)
    assert slots is not None
    order = best_order(scores, slots, keep, sweeps=sweeps)
    assert sorted(order.tolist()) == sorted(spread(scores, slots).tolist()) == list(range(units))
    there = _kept(scores, range(units), keep, of)
    assert kept_score(scores, slots, keep, order) == pytest.approx(_kept(scores, order, keep, of))
    assert _kept(scores, order, keep, of) >= there - 1e-9
    again = best_order(scores[order], slots, keep, sweeps=sweeps)
    assert _kept(scores[order], again, keep, of) >= _kept(scores, order, keep, of) - 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(1, 4), st.sampled_from([(1, 2), (2, 4), (1, 4)]), st.data())
def test_what_is_planted_is_found(blocks: int, rows: int, pattern: tuple[int, int], data: Any) -> None:
    """As many large units as can be kept, all next to each other: the best order keeps every one of them."""
    keep, of = pattern
    large, units = blocks * keep, blocks * of
    first = data.draw(st.integers(0, units - large))
    scores = torch.rand(units, rows, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    scores[first : first + large] += 10.0
    slots = slots_of(torch.arange(units), units, of)
    assert slots is not None
    order = best_order(scores, slots, keep)
    assert _kept(scores, order, keep, of) == pytest.approx(float(scores[first : first + large].double().sum()))


def test_small_cases_come_close_to_the_best_of_all_orders() -> None:
    slots, reached, best = slots_of(torch.arange(8), 8, 4), 0.0, 0.0
    assert slots is not None
    for seed in range(20):
        scores = torch.rand(8, 6, generator=torch.Generator().manual_seed(seed)).square()
        there = _kept(scores, range(8), 2, 4)
        reached += _kept(scores, best_order(scores, slots, 2), 2, 4) - there
        halves = [(*half, *(set(range(8)) - set(half))) for half in itertools.combinations(range(8), 4)]
        best += max(_kept(scores, half, 2, 4) for half in halves) - there
    assert best >= reached > 0.9 * best


def test_a_dense_tail_takes_what_would_be_lost() -> None:
    scores = torch.tensor([[9.0], [8.0], [7.0], [6.0], [1.0], [1.0]])
    slots = slots_of(torch.arange(6), 6, 4)
    assert slots is not None
    assert slots.dense.tolist() == [4, 5]
    assert _kept(scores, best_order(scores, slots, 2), 2, 4) == 9 + 8 + 7 + 6


def test_where_blocks_lie() -> None:
    def blocks(places: list[int], length: int, of: int) -> tuple[list[list[int]], list[int]] | None:
        found = slots_of(torch.tensor(places), length, of)
        return None if found is None else (found.blocks.tolist(), found.dense.tolist())

    assert blocks([0, 1, 2, 3], 4, 2) == ([[0, 1], [2, 3]], [])
    assert blocks([3, 1, 2, 0], 4, 2) == ([[0, 2], [1, 3]], [])  # slots 0 and 2 lie in the second half
    assert blocks([4, 5, 6, 7], 8, 4) == ([[0, 1, 2, 3]], [])  # behind something else, in step with the blocks
    assert blocks([2, 3, 4, 5], 6, 4) is None  # out of step
    assert blocks([0, 4, 8, 12], 16, 4) is None  # every fourth
    assert blocks([0, 1, 2, 3, 4, 5], 3, 2) == ([[0, 1], [3, 4]], [2, 5])  # groups of three of a convolution
    assert blocks([0, 1, 2], 3, 4) == ([], [0, 1, 2])
    one, other = slots_of(torch.arange(4), 4, 2), slots_of(torch.arange(4) + 4, 8, 2)
    assert isinstance(one, Slots)
    assert one.same(other)
    assert not one.same(slots_of(torch.tensor([3, 1, 2, 0]), 4, 2))


def test_readers_count_together_and_out_of_step_as_well() -> None:
    torch.manual_seed(0)
    layout = {"a": KeyLayout((5, 8)), "b": KeyLayout((3, 10)), "c": KeyLayout((8, 2, 3), kind="conv_transpose")}
    scores = {name: torch.rand(key.shape).square() for name, key in layout.items()}
    readers = [Reader("a", torch.arange(8)[:, None]), Reader("b", torch.arange(1, 9)[:, None])]
    readers.append(Reader("c", torch.arange(8)[:, None]))
    order, why = order_for(readers, scores, layout, NM(2, 4))
    assert order is not None, why
    moved = {"a": scores["a"][:, order], "b": scores["b"].clone(), "c": scores["c"][order]}
    moved["b"][:, 1:9] = scores["b"][:, 1 + order]
    before, after = (
        _kept(some["a"].t(), range(8), 2, 4) + _kept(some["b"].t(), range(10), 2, 4)
        + _kept(some["c"].flatten(1), range(8), 2, 4) for some in (scores, moved)
    )  # fmt: skip
    assert after > before
    assert sum(kept_by_pattern(moved[n], key, NM(2, 4)) for n, key in layout.items()) == pytest.approx(after)
    assert order_for(readers[1:2], scores, layout, NM(2, 4))[0] is None
    assert order_for([], scores, layout, NM(2, 4)) == (None, "no layer that is scored reads it in groups of 4")


def test_an_order_that_gains_in_one_layer_and_loses_more_in_another_is_not_taken() -> None:
    layout = {"a": KeyLayout((2, 4)), "b": KeyLayout((1, 4))}
    scores = {"a": torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 2), "b": torch.tensor([[9.0, 0.0, 9.0, 0.0]])}
    readers = [Reader("a", torch.arange(4)[:, None]), Reader("b", torch.tensor([0, 2, 1, 3])[:, None])]
    assert order_for(readers[:1], scores, layout, NM(1, 2))[0].tolist() == [0, 2, 1, 3]
    assert order_for(readers, scores, layout, NM(1, 2)) == (None, "no better order was found")
