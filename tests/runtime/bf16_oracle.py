"""What layers in bf16 must do: numbers rounded one by one, products in float64, both weights of a kept pair."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from secateur.native.loading import core

TINY = 2.0**-126


def nearest(value: float) -> float:
    """The bf16 number next to a float32 one: by arithmetic, where the package looks at bits."""
    if math.isnan(value) or math.isinf(value):
        return value
    if abs(value) < TINY:
        return math.copysign(0.0, value)
    fraction, exponent = math.frexp(value)
    grown = fraction * 256  # 8 bits, the first of them set
    whole = math.floor(grown)
    rest = grown - whole
    whole += rest > 0.5 or (rest == 0.5 and whole % 2 == 1)
    found = math.ldexp(whole, exponent - 8)
    return found if abs(found) < 2.0**128 else math.copysign(math.inf, found)


def all_nearest(values: Tensor) -> np.ndarray:
    return np.vectorize(nearest, otypes=[np.float64])(values.double().numpy())


def paired(mask: Tensor) -> np.ndarray:
    """Both weights of a pair take part if one of them is kept."""
    kept = mask.numpy().copy()
    for k in range(0, kept.shape[1] - 1, 2):
        both = kept[:, k] | kept[:, k + 1]
        kept[:, k], kept[:, k + 1] = both, both
    return kept


def product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """``[N, M]`` in float64, and how far sums in float32 may stray from it."""
    x64, w64, kept = all_nearest(x), all_nearest(torch.where(mask, weight, 0.0)), paired(mask)
    with np.errstate(invalid="ignore"):
        products = np.where(kept[None], x64[:, None, :] * w64[None], 0.0)
        y, sizes = products.sum(axis=2), np.abs(products).sum(axis=2)
    add = 0.0 if bias is None else bias.double().numpy()
    return y + add, (weight.shape[1] + 8) * (6e-8 * (sizes + np.abs(add)) + TINY)


def some_mask(rows: int, cols: int, density: float, layout: str, pairs: bool = True) -> Tensor:
    unit = 16 if layout == "block16-bf16" else 1
    generator = torch.Generator().manual_seed(rows * 1000 + cols)
    kept = torch.rand(-(-rows // unit), -(-cols // 2) if pairs else cols, generator=generator) < density
    return kept.repeat_interleave(2 if pairs else 1, 1)[:, :cols].repeat_interleave(unit, 0)[:rows].contiguous()


def own_sets() -> list[str]:
    """Instruction sets with kernels of their own for bf16; the others run those of portable."""
    return sorted(
        {name for kernel, name, _, runs in core.kernels() if kernel == "bf16_from_panel" and runs} if core else []
    )
