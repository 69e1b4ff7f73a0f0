"""What layers in int8 must do: numbers put on grids one by one, products and sums in whole numbers of 64 bits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secateur.native.loading import core

TINY = np.float32(2.0**-126)
ONE = np.float32(1)


def weights_on_grid(weight: Tensor, mask: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """int64 ``[M, K]`` and float32 scales ``[M]``."""
    kept = np.where(mask.numpy(), weight.numpy(), np.float32(0))
    rows = [max((abs(w) for w in row), default=np.float32(0)) / np.float32(127) for row in kept]
    scales = np.array([max(scale, TINY) for scale in rows], np.float32)
    return np.clip(np.rint(kept / scales[:, None]), -127, 127).astype(np.int64), scales


def sample_on_grid(x: np.ndarray) -> tuple[np.ndarray, np.float32, int]:
    """Of one float32 sample: whole numbers from 0 to 255, its step and its zero."""
    least, greatest = np.float32(min([0, *x])), np.float32(max([0, *x]))
    step = max(greatest / np.float32(255) - least / np.float32(255), TINY)
    inverse = ONE / step
    zero = min(int(np.rint(-least * inverse)), 255)
    return np.clip(np.rint(x * inverse).astype(np.int64) + zero, 0, 255), step, zero


def product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """``[N, M]`` in float64, and how far a few roundings may stray from it; NaN where a sample is not finite."""
    q, scales = weights_on_grid(weight, mask)
    y = np.full((len(x), len(weight)), np.nan)
    for i, sample in enumerate(x.numpy()):
        if np.isfinite(sample).all():
            numbers, step, zero = sample_on_grid(sample)
            sums = (q * (numbers - zero)).sum(axis=1)  # int64
            y[i] = sums * scales.astype(np.float64) * np.float64(step)
    add = 0.0 if bias is None else bias.double().numpy()
    return y + add, 4 * 6e-8 * (np.abs(y) + np.abs(y + add)) + 2e-38


def some_mask(rows: int, cols: int, density: float, layout: str, quads: bool = True) -> Tensor:
    unit, inputs = 16 if layout == "block16-int8" else 1, 4 if quads else 1
    generator = torch.Generator().manual_seed(rows * 1000 + cols)
    kept = torch.rand(-(-rows // unit), -(-cols // inputs), generator=generator) < density
    return kept.repeat_interleave(inputs, 1)[:, :cols].repeat_interleave(unit, 0)[:rows].contiguous()


def own_sets() -> list[str]:
    """Instruction sets with kernels of their own for int8; the others run those of portable or of these."""
    return sorted(
        {name for kernel, name, _, runs in core.kernels() if kernel == "int8_from_panel" and runs} if core else []
    )
