"""Greedy removal by pairs, as its definition says: every pair looked at anew at every step, in Python floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["cosine_slowly", "distance_sums", "saliency_slowly"]

Rows = Sequence[Sequence[float]]


def distance_sums(rows: Rows) -> list[float]:
    """Sum of Euclidean distances to all others."""
    return [sum(math.dist(a, b) for b in rows) for a in rows]


def cosine_slowly(rows: Rows, *, centre: bool = False, absolute: bool = False) -> list[tuple[int, float]]:
    """(unit, distance at its removal) in the order of removal, the last one left over not among them."""
    if centre:
        rows = [[x - sum(row) / len(row) for x in row] for row in rows]
    size = [math.hypot(*row) for row in rows]
    gone = [(unit, -1.0) for unit in range(len(rows)) if size[unit] < 1e-12]
    alive = [unit for unit in range(len(rows)) if size[unit] >= 1e-12]
    while len(alive) > 1:
        pairs: list[tuple[float, int, int]] = []
        for i, a in enumerate(alive):
            for b in alive[i + 1 :]:
                cos = math.fsum(x * y for x, y in zip(rows[a], rows[b], strict=True)) / (size[a] * size[b])
                pairs.append((round(1 - (abs(cos) if absolute else cos), 13), a, b))
        distance, a, b = min(pairs)
        loser = a if size[a] < size[b] else b
        alive.remove(loser)
        gone.append((loser, distance))
    return gone


def saliency_slowly(rows: Rows, outgoing: Rows) -> list[tuple[int, int, float]]:
    """(removed b, its heir a, s_ab) in the order of removal; a takes the outgoing weights of b over."""
    out = [list(row) for row in outgoing]
    alive, steps = list(range(len(rows))), []
    while len(alive) > 1:
        best = None
        for b in alive:
            for a in alive:
                if a != b:
                    s = sum(x * x for x in out[b]) / len(out[b]) * math.dist(rows[a], rows[b]) ** 2
                    if best is None or (round(s, 13), -b, a) < best[0]:
                        best = (round(s, 13), -b, a), (b, a, s)
        assert best is not None
        b, a, s = best[1]
        out[a] = [x + y for x, y in zip(out[a], out[b], strict=True)]
        alive.remove(b)
        steps.append((b, a, s))
    return steps
