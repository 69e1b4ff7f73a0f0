"""The way of small calls into the core: one look at a tensor instead of a dozen from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.native.loading import PLAIN, core

__all__ = ["EXCHANGE", "MOST_KEPT", "SMALL", "gate_for"]


def _exchange() -> Any:
    found = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    return found if core is not None and found is not None and core.readable(found) else None


EXCHANGE = _exchange()
"""Torch's table for reading tensors from C (torch 2.10 and later), or None."""

SMALL: int = 0 if core is None else core.Gate.most
"""Calls of more samples take longer than all that a gate spares."""


MOST_KEPT = 1 << 16
"""Numbers of a result that a gate may keep as a pattern for others."""


def gate_for(sample: Sequence[int]) -> Any:
    """A gate for float32 inputs ``[N, *sample]``, which knows no way yet; None where there is no table to read them by.

    Its ``run(x)`` and ``multiply(x, bias, activation)`` give the result, or None for what does not fit.
    """
    return None if EXCHANGE is None or core is None else core.Gate(EXCHANGE, PLAIN, torch.empty_like, list(sample))
