"""Linear sum assignment: who goes where, so that the sum of the gains is largest."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["assign"]

_Floats: TypeAlias = NDArray[np.float64]
_Ints: TypeAlias = NDArray[np.int64]


def assign(gain: _Floats) -> _Ints:
    """For each row a column of its own, ``max sum_i gain[i, column[i]]``; exact, by shortest augmenting paths.

    Rows that have a best column to themselves take it at once; each other row costs one search, of at most n steps of
    n operations.

    Args:
        gain: ``[n, n]``, finite.

    Returns:
        The column of each row.

    Example:
        >>> assign(np.array([[3.0, 2.0], [3.0, 0.0]])).tolist()
        [1, 0]

    Reference:
        Kuhn 1955; shortest augmenting paths of Jonker, Volgenant 1987 (both from memory, not verified).
    """
    n = len(gain)
    column, row = np.full(n, -1), np.full(n, -1)
    if n == 0:
        return column
    cost = gain.max() - gain
    v = cost.min(0)
    u = (cost - v).min(1)
    for i, j in enumerate((cost - v - u[:, None]).argmin(1)):  # tight edges
        if row[j] < 0:
            column[i], row[j] = j, i
    for start in np.flatnonzero(column < 0):
        _augment(cost, u, v, column, row, int(start))
    return column


def _augment(cost: _Floats, u: _Floats, v: _Floats, column: _Ints, row: _Ints, start: int) -> None:
    """Give one more row a column, along the shortest path of reduced costs ``cost - u - v``; prices follow."""
    n = len(cost)
    nearest, came = np.full(n, np.inf), np.full(n, -1)
    reached = np.zeros(n, bool)
    i, far = start, 0.0
    while True:
        length = far + cost[i] - u[i] - v
        closer = (length < nearest) & ~reached
        nearest[closer], came[closer] = length[closer], i
        j = int(np.where(reached, np.inf, nearest).argmin())
        far = float(nearest[j])
        if row[j] < 0:
            break
        reached[j], i = True, int(row[j])
    u[start] += far
    u[row[reached]] += far - nearest[reached]
    v[reached] -= far - nearest[reached]
    while True:
        i = int(came[j])
        row[j] = i
        j, column[i] = int(column[i]), j
        if i == start:
            return
