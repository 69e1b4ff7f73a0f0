"""What the sparse kernels must do: every product in float64, one by one, summed where the weight is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.native.loading import core
from secateur.runtime import ACTIVATIONS, LAYOUTS, Packed

FREE = [name for name, layout in LAYOUTS.items() if layout.kernel != "nm"]
"""Layouts for any mask, or for masks of blocks. (nm has tests of its own.)"""
UNSTRUCTURED = [name for name in FREE if LAYOUTS[name].kernel != "blocks"]
BLOCKED = [name for name, layout in LAYOUTS.items() if layout.kernel == "blocks"]


def random_mask(rows: int, cols: int, density: float, layout: str, seed: int = 0) -> Tensor:
    """Kept weights of this share, in blocks where the layout has blocks."""
    unit = LAYOUTS[layout].unit if layout in BLOCKED else 1
    generator = torch.Generator().manual_seed(seed + rows * 1000 + cols)
    blocks = torch.rand(-(-rows // unit), cols, generator=generator) < density
    return blocks.repeat_interleave(unit, 0)[:rows].contiguous()


def product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> np.ndarray:
    """``[N, M]`` in float64: a removed weight takes no part, whatever x holds there."""
    x64, w64, kept = x.double().numpy(), weight.double().numpy(), mask.numpy()
    with np.errstate(invalid="ignore"):
        products = np.where(kept[None], x64[:, None, :] * w64[None], 0.0)
        y = products.sum(axis=2)
    return y if bias is None else y + bias.double().numpy()


def bound(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> np.ndarray:
    """How far float32 may stray: half a unit in the last place for every addition."""
    sizes = product(x.abs(), weight.abs(), mask, None if bias is None else bias.abs())
    return (weight.shape[1] + 8) * 6e-8 * sizes + 1e-37


def activated(y: np.ndarray, activation: str | None) -> np.ndarray:
    return ACTIVATIONS[activation][1](torch.from_numpy(y)).numpy()


def run(handle: Any, packed: Packed, x: Tensor, bias: Tensor | None, activation: str | None = None) -> np.ndarray:
    """The bare core, with guards around the result."""
    rows = packed.shape[0]
    memory = torch.full((len(x) * rows + 32,), 12345.0)
    handle.run(
        x.data_ptr(),
        len(x),
        memory[16:].data_ptr(),
        0 if bias is None else bias.data_ptr(),
        ACTIVATIONS[activation][0],
    )
    assert bool((memory[:16] == 12345).all())
    assert bool((memory[16 + len(x) * rows :] == 12345).all())
    return memory[16:-16].reshape(len(x), rows).double().numpy()


def handle_of(packed: Packed, isa: str) -> Any:
    return packed.handle(core.table(isa))
