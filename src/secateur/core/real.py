"""Numbers as users give them."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

__all__ = ["is_real"]


def is_real(value: object) -> bool:
    """Whether it is one finite real number: no text, no truth value, no list; numpy's and tensors without axes, too.

    Example:
        >>> is_real(0.5), is_real("0.5"), is_real(True), is_real(float("nan"))
        (True, False, False, False)
        >>> is_real(torch.tensor(0.5)), is_real(torch.tensor([0.5])), is_real(torch.tensor(True))
        (True, False, False)
    """
    if isinstance(value, Tensor):
        number = value.dim() == 0 and value.dtype != torch.bool and not value.is_complex()
        return number and math.isfinite(float(value))
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
