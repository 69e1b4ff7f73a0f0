"""Finds the C++ core, once, at import."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

__all__ = ["PLAIN", "available", "core", "isa", "never_traced", "takes"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _flag(name: str) -> bool:
    value = os.environ.get(name, "")
    if value not in {"", "0", "1"}:
        raise ValueError(f"environment variable {name}={value!r}: allowed are 0, 1, or leaving it unset")
    return value == "1"


def _load() -> Any:
    disabled, required = _flag("SECATEUR_DISABLE_NATIVE"), _flag("SECATEUR_REQUIRE_NATIVE")
    if disabled and required:
        raise ValueError("SECATEUR_DISABLE_NATIVE=1 and SECATEUR_REQUIRE_NATIVE=1 contradict each other: unset one")
    if not disabled:
        try:
            return importlib.import_module("secateur._core")
        except ModuleNotFoundError as error:
            if error.name != "secateur._core":
                raise
    forced = os.environ.get("SECATEUR_ISA")
    if required or forced:
        asked = "SECATEUR_REQUIRE_NATIVE=1" if required else f"SECATEUR_ISA={forced}"
        state = "disabled by SECATEUR_DISABLE_NATIVE=1" if disabled else "absent: reinstall with a C++17 compiler"
        raise ImportError(f"{asked} asks for the C++ core of secateur, which is {state}", name="secateur._core")
    if not disabled:
        warnings.warn(
            "the C++ core of secateur is absent, torch references run instead (slower, same results); "
            "reinstall with a C++17 compiler to get it, or set SECATEUR_DISABLE_NATIVE=1 to accept this silently",
            RuntimeWarning,
            stacklevel=2,
        )
    return None


core = _load()
"""The extension module ``secateur._core``, or None."""

PLAIN = frozenset({Tensor, nn.Parameter})
"""Types whose memory is what it seems; DTensor, FakeTensor and other subclasses take the torch reference."""


def takes(tensor: Tensor) -> bool:
    """Tell whether the core is there and may read this tensor's memory, if it is contiguous."""
    return core is not None and tensor.is_cpu and type(tensor) in PLAIN


def never_traced(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keep `torch.compile` out of a function that works on addresses (1.3 us per call).

    Importing Dynamo takes seconds, so that waits until somebody else has imported it (every optimizer does): before,
    nothing can be compiled.
    """
    disabled: Callable[_P, _R] | None = None

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        nonlocal disabled
        if disabled is None:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            disabled = cast("Callable[_P, _R]", torch.compiler.disable(function))
        return disabled(*args, **kwargs)

    return call


def available() -> bool:
    """Tell whether the C++ core runs.

    Returns:
        False where the core is absent or disabled, and torch references run instead.

    Example:
        >>> isinstance(available(), bool)
        True
    """
    return core is not None


def isa() -> str:
    """Name the instruction set in use.

    Returns:
        ``portable``, ``avx2``, ``avx512``, ``avx512vnni``, ``avx512bf16`` or ``neon``; ``torch`` without the core.

    Example:
        >>> isa() in {"portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "neon", "torch"}
        True
    """
    return "torch" if core is None else core.active.isa
