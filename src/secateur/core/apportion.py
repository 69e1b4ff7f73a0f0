"""Real shares to whole numbers, and densities to a fixed point."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["apportion", "water_fill"]


def apportion(targets: Mapping[str, float], total: int, caps: Mapping[str, int]) -> dict[str, int]:
    """Round targets to whole numbers of a given sum by largest remainder, none above its cap.

    Of equal remainders the key that comes first is rounded up.

    Args:
        targets: real numbers, of sum ``total`` up to rounding.
        total: the sum wanted, at most that of the caps.
        caps: largest number per key.

    Returns:
        Whole numbers of sum ``total``.

    Example:
        >>> apportion({"a": 1.5, "b": 2.5, "c": 1.0}, 5, {"a": 9, "b": 9, "c": 9})
        {'a': 2, 'b': 2, 'c': 1}
    """
    assert 0 <= total <= sum(caps[key] for key in targets), (targets, total, caps)
    # A target that misses a whole number by rounding error is that number.
    counts = {key: min(caps[key], math.floor(target + 1e-9 * (1.0 + target))) for key, target in targets.items()}
    order = sorted(targets, key=lambda key: counts[key] - targets[key])
    missing = total - sum(counts.values())
    step = 1 if missing > 0 else -1
    while missing:
        for key in order if step > 0 else reversed(order):
            if missing and 0 <= counts[key] + step <= caps[key]:
                counts[key] += step
                missing -= step
    return counts


def water_fill(raw: Mapping[str, float], sizes: Mapping[str, int], keep: int) -> dict[str, float]:
    """Counts ``min(1, eps * raw) * size`` with eps such that they sum to ``keep``.

    Making a key dense only raises eps for the others, so all keys over 1 can be fixed in one pass.
    """
    dense: set[str] = set()
    while True:
        free = keep - sum(sizes[key] for key in dense)
        weight = sum(raw[key] * n for key, n in sizes.items() if key not in dense)
        eps = free / weight if weight else 0.0
        over = {key for key in sizes if key not in dense and eps * raw[key] > 1.0}
        if not over:
            return {key: float(n) if key in dense else eps * raw[key] * n for key, n in sizes.items()}
        dense |= over
