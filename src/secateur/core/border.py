"""The border of a selection, found by passes over the bits of scores: exact, linear, and nothing is sorted or joined.

A finite float's bits, read as a whole number and turned round below zero, are in the order of the floats (-0 below +0,
which as a border are one number). One pass counts how often each value of the highest 16 bits occurs, which says in
which of 65,536 bins the border lies; the next pass does the same within that bin: two passes for float32, four for
float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core.streamed import Pieces
from secateur.native import BINS, count_digits, in_order

__all__ = ["Pool", "border"]

_WHOLE = {torch.float32: torch.int32, torch.float64: torch.int64}


@dataclass(frozen=True)
class Pool:
    """Some of the scores that compete.

    Attributes:
        passes: starts a pass over them.
        aside: so many of the highest do not compete.
    """

    passes: Pieces
    aside: int = 0


def border(pools: Sequence[Pool], keep: int, dtype: torch.dtype) -> float:
    """The ``keep``-th highest score of all that compete.

    Args:
        pools: of finite scores.
        keep: from 1 to the number of those that compete.
        dtype: float32 or float64, which holds all scores.

    Returns:
        The score, a number of that dtype.

    Example:
        >>> scores = torch.tensor([0.5, -2.0, 3.0, 3.0])
        >>> border([Pool(lambda: iter([scores]))], 3, torch.float32)
        0.5
        >>> border([Pool(lambda: iter([scores]), aside=1)], 3, torch.float32)
        -2.0
    """
    prefix: int | None = None
    for shift in range(8 * dtype.itemsize - 16, -1, -16):
        counts = torch.zeros(BINS, dtype=torch.int64)
        for pool in pools:
            counts += _competing(pool, dtype, shift, prefix)
        from_above = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_above, keep))
        keep -= int(from_above[place - 1]) if place else 0
        digit = BINS - 1 - place
        prefix = digit - BINS // 2 if prefix is None else prefix * BINS + digit
    return float(in_order(torch.tensor([prefix], dtype=_WHOLE[dtype])).view(dtype))


def _competing(pool: Pool, dtype: torch.dtype, shift: int, prefix: int | None) -> Tensor:
    """How many competing scores have each value of 16 bits, of those whose higher bits are the prefix."""
    counts = torch.zeros(BINS, dtype=torch.int64)
    above = sum(count_digits(piece.to(dtype), shift, prefix, counts) for piece in pool.passes())
    aside = max(0, pool.aside - above)
    if not aside:
        return counts
    from_above = counts.flip(0).cumsum(0)
    return (from_above - aside).clamp_(min=0).diff(prepend=from_above.new_zeros(1)).flip(0)
