"""Histograms over the bits of floats, from which a selection reads its border."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.native.loading import core, never_traced, takes

__all__ = ["BINS", "count_digits", "in_order"]

BINS = 1 << 16
_WHOLE = {torch.float32: torch.int32, torch.float64: torch.int64}


def in_order(bits: Tensor) -> Tensor:
    """Bits of floats as whole numbers in the order of the floats, -0 just below +0; its own inverse.

    Args:
        bits: int32 or int64, the bits of float32 or float64.

    Returns:
        Whole numbers of the same type.

    Example:
        >>> in_order(torch.tensor([-1.0, -0.0, 0.0, 1.0]).view(torch.int32)).diff().gt(0).tolist()
        [True, True, True]
    """
    negative = bits >> (8 * bits.dtype.itemsize - 1)
    return negative.bitwise_and_(torch.iinfo(bits.dtype).max).bitwise_xor_(bits)


@never_traced
def count_digits(values: Tensor, shift: int, prefix: int | None, counts: Tensor) -> int:
    """How often each value of 16 bits occurs in floats, read as whole numbers in their order.

    ``counts[d] += #{v: (v >> shift) & 65535 = d and v >> (shift + 16) = prefix}``; of the highest 16 bits the sign is
    turned round, so that higher digits are higher floats, and there is no prefix.

    Args:
        values: float32 or float64, flat; no NaN.
        shift: the lowest of the 16 bits: 16 or 0 of float32, 48, 32, 16 or 0 of float64.
        prefix: the bits above, as a whole number with its sign; None for the highest 16 bits.
        counts: int64 ``[65536]`` on the CPU; added to in place.

    Returns:
        How many floats have more than the prefix above; 0 for the highest 16 bits.

    Raises:
        ValueError: for other types and counts, and for a prefix where there is nothing above, or none where there is.

    Example:
        >>> counts = torch.zeros(BINS, dtype=torch.int64)
        >>> count_digits(torch.tensor([-1.0, 2.0, 2.0, 3.0]), 16, None, counts)
        0
        >>> [(int(digit), int(counts[digit])) for digit in counts.nonzero()]
        [(16511, 1), (49152, 2), (49216, 1)]
    """
    if values.dtype not in _WHOLE:
        raise ValueError(f"values: expected float32 or float64, got {values.dtype}; convert them first")
    highest = 8 * values.itemsize - 16
    if (prefix is None) != (shift == highest):
        raise ValueError(f"shift={shift}, prefix={prefix}: the highest 16 bits begin at {highest} and have no prefix")
    if counts.dtype != torch.int64 or counts.shape != (BINS,) or not (counts.is_cpu and counts.is_contiguous()):
        raise ValueError(
            f"counts: expected contiguous int64 [{BINS}] on the CPU, got {counts.dtype} {list(counts.shape)} on "
            f"{counts.device}; make it by torch.zeros(BINS, dtype=torch.int64)"
        )
    flat = values.detach().contiguous()
    if core is None or not takes(flat):
        return _digits_reference(flat, shift, prefix, counts)
    address = counts.data_ptr()
    return core.active.digits(flat.data_ptr(), flat.itemsize, flat.numel(), shift, prefix or 0, address)


def _digits_reference(flat: Tensor, shift: int, prefix: int | None, counts: Tensor) -> int:
    ordered, above = in_order(flat.view(_WHOLE[flat.dtype])), 0
    if prefix is None:
        digits = (ordered >> shift).add_(BINS // 2)
    else:
        high = ordered >> (shift + 16)
        above = int(torch.count_nonzero(high > prefix))
        digits = (ordered[high == prefix] >> shift).bitwise_and_(BINS - 1)
    counts += torch.bincount(digits, minlength=BINS).cpu()
    return above
