"""Packing in int8: a column is four neighbouring inputs ``(4 k, ..., 4 k + 3)``, a value is a word of four weights.

Weights lie on a symmetric grid per output, ``w = scale * q``; what they meet on one per sample with a zero of its own,
``x = step * (byte - zero)``. Sums of products of such integers are exact, so the same numbers come out everywhere:
``y = scale * step * (sum(q * byte) - zero * sum(q))``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.runtime.columns import RUN, Array
from secateur.runtime.layouts import LAYOUTS, Layout, Pieces, even_pieces
from secateur.runtime.pairs import word_mask

__all__ = ["LONGEST", "QUAD_LAYOUTS", "from_quads", "on_grid", "product", "quantised", "to_quads"]

LONGEST = (2**31 - 1) // (127 * 255)
"""Inputs whose products fit a sum of 32 bits, whatever they are: 66,311."""

_TINY = torch.finfo(torch.float32).tiny


def _cached(rows: int, quads: int, density: float) -> Pieces:
    """K-blocks of 48 KB of activations: a quad is worth four inputs, so fewer of them come between two stops."""
    return Pieces(even_pieces(rows, 8 * RUN), 2 * RUN, 8)


def _in_quads(layout: str, what: str) -> Layout:
    return replace(LAYOUTS[layout], what=what, inputs=4)


QUAD_LAYOUTS: dict[str, Layout] = {
    "quads-int8": replace(_in_quads("even", "quads, 4 rows with like counts"), cut=_cached),
    "quads-rows-int8": replace(_in_quads("rows", "quads, 4 rows by occupancy pattern"), cut=_cached),
    "quads-wide-int8": _in_quads("even-wide", "as quads-int8, without K-blocks"),
    "quads-csr-int8": _in_quads("csr", "quads, row by row"),
    "quads-ell-int8": _in_quads("ell", "quads, for one sample"),
    "quads-ell-twin-int8": _in_quads("ell-twin", "as quads-ell-int8, two rows in a lane"),
    "block16-int8": _in_quads("block16", "blocks of 16 outputs by one quad"),
}
"""Name -> layout in int8; ``cut`` and ``pack`` count quads."""


def quantised(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``[M, K]`` on their grids, int8 from -127 to 127 and 0 where removed, and the scales ``[M]``."""
    kept = torch.where(mask, weight, 0.0)
    scales = (F.pad(kept, (0, 1)).abs().amax(1) / 127).clamp(min=_TINY)
    return torch.round(kept / scales[:, None]).clamp(-127, 127).to(torch.int8), scales


def to_quads(numbers: Tensor, mask: Tensor) -> tuple[Array, Array]:
    """int8 and mask ``[M, K]`` as words and mask of quads ``[M, ceil(K / 4)]``; words are the bits of a float32."""
    quads = F.pad(numbers, (0, -numbers.shape[1] % 4)).contiguous().numpy().view(np.float32)
    return quads, word_mask(mask, 4).contiguous().numpy()


def from_quads(words: Array, mask: Array, cols: int) -> tuple[Tensor, Tensor]:
    """The inverse of `to_quads`; all weights of a kept quad count as kept."""
    numbers = torch.from_numpy(np.ascontiguousarray(words).view(np.int8))[:, :cols].contiguous()
    return numbers, torch.from_numpy(mask).repeat_interleave(4, 1)[:, :cols].contiguous()


def on_grid(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Samples ``[N, K]`` on their grids as the kernels do it.

    Returns:
        Whole numbers from 0 to 255 ``[N, K]``, steps and zeros ``[N]``, all float32. The step of a sample that holds
        NaN or infinity is NaN.
    """
    strange = ~torch.isfinite(x).all(1)
    sane = F.pad(torch.where(strange[:, None], 0.0, x), (0, 1))  # 0 is always on the grid
    least, greatest = sane.amin(1), sane.amax(1)
    steps = (greatest / 255 - least / 255).clamp(min=_TINY)
    inverses = 1 / steps
    zeros = torch.round(-least * inverses).clamp(max=255)
    numbers = (torch.round(sane[:, :-1] * inverses[:, None]) + zeros[:, None]).clamp(0, 255)
    return numbers, torch.where(strange, torch.nan, steps), zeros


def product(x: Tensor, numbers: Tensor, scales: Tensor) -> Tensor:
    """``[N, K]`` by int8 ``[M, K]``: what the kernels compute, where they do not run."""
    bytes_, steps, zeros = on_grid(x)
    sums = (bytes_ - zeros[:, None]).double() @ numbers.double().t()  # exact: far below 2^53
    return sums.float() * scales * steps[:, None]
