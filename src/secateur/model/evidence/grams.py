"""Sums of ``x x^T`` at about half the price: what lies above the diagonal is computed, the rest copied."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from torch import Tensor

__all__ = ["gram_of"]

_SMALL = 192
"""Blocks on the diagonal of up to so many columns are multiplied whole: below that, calls cost more than they save."""


def gram_of(parts: Iterator[Tensor]) -> Tensor:
    """``G = sum over parts of X X^T``, symmetric to the bit.

    Args:
        parts: ``[columns, places]`` each, one or more, on one device and of one type.

    Returns:
        ``[columns, columns]``, of the type of the parts.

    Example:
        >>> import torch
        >>> gram_of(iter([torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0], [1.0]])])).tolist()
        [[6.0, 3.0], [3.0, 2.0]]
    """
    first = next(parts)
    total = first.new_zeros(len(first), len(first))
    for part in chain((first,), parts):
        _add(total, part)
    _mirror(total)
    return total


def _half(columns: int) -> int:
    return (columns // 2 + 63) // 64 * 64


def _add(total: Tensor, part: Tensor) -> None:
    """Blocks on the diagonal and above."""
    if len(part) <= _SMALL:
        total.addmm_(part, part.t())
        return
    half = _half(len(part))
    _add(total[:half, :half], part[:half])
    _add(total[half:, half:], part[half:])
    total[:half, half:].addmm_(part[:half], part[half:].t())


def _mirror(total: Tensor) -> None:
    """What is below them; a product of a matrix with itself is symmetric but for the order of its sums."""
    if len(total) <= _SMALL:
        total.copy_(total.triu() + total.triu(1).t())
        return
    half = _half(len(total))
    total[half:, :half] = total[:half, half:].t()
    _mirror(total[:half, :half])
    _mirror(total[half:, half:])
