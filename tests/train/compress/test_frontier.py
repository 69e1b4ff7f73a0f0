"""The frontier against a slow oracle: for every point, is there another at least as good and somewhere better?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from secateur.records import Trial
from secateur.train.compress.frontier import frontier_of
from tests.train.compress.nets import trial

small = st.integers(0, 4)
figures = st.tuples(small, small, small)


def points(rows: list[tuple[int, int, int]]) -> list[Trial]:
    return [trial(str(i), value=float(v), bytes=b, macs=m) for i, (v, b, m) in enumerate(rows)]


def better(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@given(st.lists(figures, max_size=9), st.none() | figures)
def test_the_frontier_is_what_nothing_beats(
    rows: list[tuple[int, int, int]], dense: tuple[int, int, int] | None
) -> None:
    cost = [(-v, b, m) for v, b, m in rows]
    rival = None if dense is None else (-dense[0], dense[1], dense[2])
    expected = set()
    for i, mine in enumerate(cost):
        beaten = any(better(other, mine) for other in cost) or mine in cost[:i]
        by_dense = rival is not None and (better(rival, mine) or rival == mine)
        if not beaten and not by_dense:
            expected.add(str(i))
    whole = None if dense is None else trial("dense", value=float(dense[0]), bytes=dense[1], macs=dense[2])
    found = frontier_of(points(rows), whole)
    assert {point.key for point in found} == expected
    assert [point.valid.value for point in found] == sorted((p.valid.value for p in found), reverse=True)
