"""Numbers as users give them."""

from __future__ import annotations

import math
from numbers import Real

from torch import Tensor

__all__ = ["is_real"]


def is_real(value: object) -> bool:
    """Whether it is one finite real number: no text, no truth value, no list; of numpy and tensors of one element, too.

    Example:
        >>> is_real(0.5), is_real("0.5"), is_real(True), is_real(float("nan"))
        (True, False, False, False)
    """
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dim() == 0 and not value.is_complex() and math.isfinite(float(value))
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
