"""Bisection of the strength against networks that are a threshold: the drop is allowed up to some index."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from secateur.train.compress.bisection import Bisection
from secateur.train.compress.cheap import Range


def spend(search: Bisection, threshold: int, trials: int) -> list[int]:
    asked: list[int] = []
    while (index := search.next()) is not None and len(asked) < trials:
        asked.append(index)
        search.tell(index, within=index <= threshold, sized=True)
    return asked


@given(st.integers(3, 320), st.integers(0, 330), st.none() | st.integers(1, 320))
def test_the_largest_within_is_found(last: int, threshold: int, least: int | None) -> None:
    least = None if least is None else min(least, last)
    asked = spend(Bisection(Range(least, last, 0, {}), by_drop=True), threshold, trials=100)
    assert all(1 <= index <= last for index in asked)
    assert len(asked) == len(set(asked)) <= 20
    within = [index for index in asked if index <= threshold]
    assert min(threshold, last) - max(within, default=0) < 2
    if least is not None:
        assert asked[0] == least


def test_a_least_strength_that_loses_too_much_says_so() -> None:
    search = Bisection(Range(100, 320, 0, {}), by_drop=True)
    assert spend(search, 50, trials=1) == [100]
    assert search.too_far
    assert search.next() == 50


def test_without_a_drop_the_least_is_trained_and_a_little_more_while_it_misses() -> None:
    search = Bisection(Range(100, 101, 0, {}), by_drop=False)
    assert search.next() == 100
    search.tell(100, within=True, sized=False)
    assert search.next() == 101
    search.tell(101, within=True, sized=False)
    assert search.next() is None
    met = Bisection(Range(100, 320, 0, {}), by_drop=False)
    assert spend(met, 0, trials=9) == [100]


def test_where_no_strength_meets_the_sizes_the_frontier_is_told() -> None:
    assert spend(Bisection(Range(None, 160, 0, {}), by_drop=False), 0, trials=9) == [160, 80, 120]
