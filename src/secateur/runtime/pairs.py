"""Packing in bf16: a column is a pair of neighbouring inputs ``(2 k, 2 k + 1)``, a value is a word of two bf16 numbers.

The streams are those of float32 with words in the place of numbers, so the same functions pack them. A pair is kept
where one of its weights is; the other one is then a 0 that is multiplied.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.runtime.columns import RUN, Array
from secateur.runtime.layouts import LAYOUTS, Layout, Pieces, even_pieces

__all__ = ["PAIR_LAYOUTS", "from_words", "rounded", "to_words", "word_mask"]

_TINY = torch.finfo(torch.float32).tiny


def _cached(rows: int, pairs: int, density: float) -> Pieces:
    """K-blocks of 24 or 48 KB of activations: smaller where many weights read them."""
    return Pieces(even_pieces(rows, 8 * RUN), RUN if density > 0.15 else 2 * RUN, 8)


def _in_pairs(layout: Layout, what: str) -> Layout:
    return replace(layout, what=what, inputs=2)


PAIR_LAYOUTS: dict[str, Layout] = {
    "pairs-bf16": replace(_in_pairs(LAYOUTS["even"], "pairs, 4 rows with like counts"), cut=_cached),
    "pairs-rows-bf16": replace(_in_pairs(LAYOUTS["rows"], "pairs, 4 rows by occupancy pattern"), cut=_cached),
    "pairs-wide-bf16": _in_pairs(LAYOUTS["even-wide"], "as pairs-bf16, without K-blocks"),
    "pairs-csr-bf16": _in_pairs(LAYOUTS["csr"], "pairs, row by row"),
    "pairs-ell-bf16": _in_pairs(LAYOUTS["ell"], "pairs, for one sample"),
    "pairs-ell-twin-bf16": _in_pairs(LAYOUTS["ell-twin"], "as pairs-ell-bf16, two rows in a lane"),
    "block16-bf16": _in_pairs(LAYOUTS["block16"], "blocks of 16 outputs by one pair"),
}
"""Name -> layout in bf16; ``cut`` and ``pack`` count pairs."""


def rounded(values: Tensor) -> Tensor:
    """To bf16 and back as the kernels do it: to the nearest, ties to even, denormal numbers to 0."""
    flushed = torch.where(values.abs() < _TINY, torch.copysign(torch.zeros_like(values), values), values)
    return flushed.to(torch.bfloat16).float()


def word_mask(mask: Tensor, inputs: int) -> Tensor:
    """``[M, K]`` -> ``[M, ceil(K / inputs)]``: whether a weight of the word is kept."""
    rows, cols = mask.shape
    missing = -cols % inputs
    return F.pad(mask, (0, missing)).reshape(rows, (cols + missing) // inputs, inputs).any(2)


def to_words(weight: Tensor, mask: Tensor) -> tuple[Array, Array]:
    """Weight and mask ``[M, K]`` as words and mask of pairs ``[M, ceil(K / 2)]``; words are the bits of a float32."""
    kept = rounded(torch.where(mask, weight, 0.0)).to(torch.bfloat16)
    halves = F.pad(kept, (0, weight.shape[1] % 2)).contiguous().view(torch.int16)
    return halves.numpy().view(np.float32), word_mask(mask, 2).contiguous().numpy()


def from_words(words: Array, mask: Array, cols: int) -> tuple[Tensor, Tensor]:
    """The inverse of `to_words`; both weights of a kept pair count as kept."""
    halves = torch.from_numpy(np.ascontiguousarray(words).view(np.int16))
    weight = halves.view(torch.bfloat16)[:, :cols].float()
    return weight, torch.from_numpy(mask).repeat_interleave(2, 1)[:, :cols].contiguous()
