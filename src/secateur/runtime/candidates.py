"""Which packings of a weight are worth timing, and what pattern its zeros have."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.runtime.nm import kept_of_window
from secateur.runtime.pairs import word_mask
from secateur.runtime.quads import LONGEST

__all__ = ["candidates", "pattern_of"]

_UNITS = (16, 8, 4)


def pattern_of(weight: Tensor) -> str:
    """Name the pattern of the zeros of a weight ``[M, ...]``.

    Returns:
        ``dense``, ``blocks 16x1`` (8x1, 4x1: so many outputs by one input), ``blocks 1x4`` (1x2: of one output by
        so many inputs), ``2:4`` (1:4, 1:8, 2:8, 4:8, 1:16, ..., 8:16: along the inputs) or ``unstructured``.

    Example:
        >>> import torch
        >>> pattern_of(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]]))
        'blocks 4x1'
    """
    kept = (weight != 0).flatten(1)
    if bool(kept.all()):
        return "dense"
    if blocks_fit(kept, _UNITS[-1]):  # larger blocks are made of these
        return next(f"blocks {unit}x1" for unit in _UNITS if blocks_fit(kept, unit))
    for inputs in (4, 2):
        if kept.shape[1] % inputs == 0 and torch.equal(word_mask(kept, inputs).repeat_interleave(inputs, 1), kept):
            return f"blocks 1x{inputs}"
    density = int(kept.count_nonzero()) / max(kept.numel(), 1)
    for n, m in ((1, 4), (2, 4), (1, 8), (2, 8), (4, 8), (1, 16), (2, 16), (4, 16), (8, 16)):
        likely = kept.shape[1] % m == 0 and 0.97 * n <= density * m <= n
        counts = kept.view(-1, m).sum(1) if likely else None
        if counts is not None and int(counts.max()) == n and float(counts.float().mean()) > 0.98 * n:
            return f"{n}:{m}"  # a kept weight may be 0 by chance
    return "unstructured"


def blocks_fit(kept: Tensor, unit: int) -> bool:
    """Whether a mask ``[M, K]`` keeps or removes ``unit`` neighbouring rows together."""
    rows = len(kept) - len(kept) % unit
    if rows == 0 or len(kept) != rows:
        return False
    grouped = kept.view(rows // unit, unit, -1)
    return bool((grouped == grouped[:, :1]).all())


def candidates(weight: Tensor, lanes: int, dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
    """Layouts of a linear layer that may be the fastest; ``dense`` among them where zeros are few.

    Args:
        weight: ``[M, K]``.
        lanes: samples side by side.
        dtype: bfloat16 adds the layouts in pairs, int8 those in quads; those of float32 stay.

    Returns:
        Names of ``secateur.runtime.LAYOUTS``, or ``dense`` and ``dense-4``: every weight, in blocks of 16 or 4 rows;
        with bfloat16 also of ``PAIR_LAYOUTS`` and ``dense-bf16``, with int8 of ``QUAD_LAYOUTS`` and ``dense-int8``.

    Example:
        >>> import torch
        >>> candidates(torch.eye(64), lanes=64)
        ('even', 'even-wide', 'csr')
    """
    kept = weight != 0
    density = int(kept.count_nonzero()) / max(kept.numel(), 1)
    whole = density < 1 and blocks_fit(kept, _UNITS[-1])  # larger blocks are made of these
    found = [f"block{unit}" for unit in _UNITS if whole and blocks_fit(kept, unit)]
    if lanes == 1:
        found += ["nm"] if kept_of_window(kept) is not None else []
        # Where weights are rare ell has more bytes than 1.5 times those of its values and an index.
        found += ["ell"] if 0.085 < density < 0.7 else []
        found += ["ell-twin"] if 0.005 < density < 0.12 else []
        found += ["csr"] if density < 0.02 else []
    else:
        found += ["rows"] if 0.1 < density < 0.8 else []
        found += ["even"] if density < 0.4 else []
        found += ["even-wide"] if density < (0.4 if lanes <= 16 else 0.08) else []
        found += ["csr"] if density < 0.08 else []
    if density > 0.3 or not found:
        found += ["dense"] if lanes == 1 else ["dense-4", "dense"]
    return (*found, *_in_dtype(weight, lanes, dtype))


def _in_words(weight: Tensor, lanes: int, inputs: int) -> list[str]:
    """Of an unstructured mask many words have few weights: what that costs, the measurement will tell."""
    kept = word_mask(weight != 0, inputs)
    density = float(kept.float().mean()) if kept.numel() else 0.0
    name, end = {2: ("pairs", "bf16"), 4: ("quads", "int8")}[inputs]
    if lanes == 1:
        found = [f"{name}-ell-{end}"] if 0.085 < density < 0.85 else []
        found += [f"{name}-ell-twin-{end}"] if 0.005 < density < 0.12 else []
        found += [f"{name}-csr-{end}"] if density < 0.02 else []
    else:
        found = [f"{name}-rows-{end}"] if 0.1 < density < 0.85 else []
        found += [f"{name}-{end}"] if density < 0.5 else []
        found += [f"{name}-wide-{end}"] if density < (0.5 if lanes <= 32 else 0.12) else []
        found += [f"{name}-csr-{end}"] if density < 0.08 else []
    return found if density < 0.4 and found else [*found, f"dense-{end}"]


def _in_dtype(weight: Tensor, lanes: int, dtype: torch.dtype) -> list[str]:
    """What another number format than float32 adds; int8 takes neither NaN nor infinity, nor endless sums."""
    if dtype == torch.bfloat16:
        return _in_words(weight, lanes, 2)
    if dtype != torch.int8 or weight.shape[1] > LONGEST or not bool(torch.isfinite(weight).all()):
        return []
    return _in_words(weight, lanes, 4)
