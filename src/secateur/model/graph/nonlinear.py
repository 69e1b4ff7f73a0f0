"""The operators that count as activation functions. To add one: its name in a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["NONLINEAR", "makes_zeros"]

_EXACT = frozenset(["relu", "relu6", "threshold", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "maximum"])
"""These give exactly zero on an interval."""
_BOUNDED = frozenset(["clamp", "clamp_min", "hardtanh"])
"""These do where their lower bound is zero."""
_SMOOTH = frozenset(
    [
        "gelu",
        "silu",
        "sigmoid",
        "tanh",
        "leaky_relu",
        "elu",
        "celu",
        "softplus",
        "mish",
        "_prelu_kernel",
        "prelu",
        "rrelu_with_noise",
        "log_sigmoid_forward",
        "erf",
        "sin",
        "cos",
        "clamp_max",
    ]
)

NONLINEAR = _EXACT | _BOUNDED | _SMOOTH
"""ATen operators on each element, without the underscore of those that work in place."""


def makes_zeros(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator of the table gives exact zeros, as it was called.

    Example:
        >>> makes_zeros("hardtanh", (None, 0.0, 6.0), {}), makes_zeros("hardtanh", (None,), {})
        (True, False)
    """
    if name not in _BOUNDED:
        return name in _EXACT
    low = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val"))
    return low is not None and not isinstance(low, Tensor) and low == 0
