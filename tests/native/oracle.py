"""What the kernels must do, by NumPy and by plain loops that share nothing with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.native.loading import core

needs_core = pytest.mark.skipif(core is None, reason="the C++ core is absent")

SIZES = (0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 1000, 4097)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def instruction_sets() -> list[str]:
    """Those of ``kernels.def`` that this machine runs."""
    return [] if core is None else sorted({line[1] for line in core.kernels() if line[3]})


def random_mask(n: int, density: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + n).random(n) < density


def packed(mask: np.ndarray) -> np.ndarray:
    return np.packbits(mask.astype(bool), bitorder="little")


def bits_tensor(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(packed(mask))


def awkward_values(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random bit patterns: every kind of NaN, denormals, infinities; and minus zeros."""
    generator = torch.Generator().manual_seed(seed + n)
    size = dtype.itemsize
    raw = torch.randint(0, 256, (n * size,), dtype=torch.uint8, generator=generator)
    values = raw.view(dtype) if n else torch.empty(0, dtype=dtype)
    values[::5] = -0.0
    values[1::11] = float("inf")
    return values


def raw(values: Tensor) -> np.ndarray:
    """The bit patterns, in which NaN equals itself and -0 differs from 0."""
    return values.detach().contiguous().view(INTEGER[values.element_size()]).numpy()


def masked(values: Tensor, mask: np.ndarray) -> np.ndarray:
    return np.where(mask.reshape(values.shape), raw(values), 0)


def select(row: list[float], keep: int, of: int) -> list[bool]:
    """Remove the lowest that is left, the first among equals, ``of - keep`` times in every whole group."""
    kept = [True] * len(row)
    for start in range(0, len(row) - of + 1, of):
        group = range(start, start + of)
        for _ in range(of - keep):
            kept[min((i for i in group if kept[i]), key=lambda i: (row[i], i))] = False
    return kept
