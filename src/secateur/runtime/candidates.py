"""Which packings of a weight are worth timing, and what pattern its zeros have."""

from __future__ import annotations

from torch import Tensor

__all__ = ["candidates", "pattern_of"]

_UNITS = (16, 8, 4)


def pattern_of(weight: Tensor) -> str:
    """Name the pattern of the zeros of a weight ``[M, ...]``.

    Returns:
        ``dense``, ``blocks 16x1`` (8x1, 4x1: so many outputs by one input), ``2:4`` (1:4, 4:8, 2:8: along the
        inputs) or ``unstructured``.

    Example:
        >>> import torch
        >>> pattern_of(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]]))
        'blocks 4x1'
    """
    kept = (weight != 0).flatten(1)
    if bool(kept.all()):
        return "dense"
    for unit in _UNITS:
        if blocks_fit(kept, unit):
            return f"blocks {unit}x1"
    for n, m in ((1, 4), (2, 4), (2, 8), (4, 8)):
        counts = kept.view(-1, m).sum(1) if kept.shape[1] % m == 0 else None
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


def candidates(weight: Tensor, lanes: int) -> tuple[str, ...]:
    """Layouts of a linear layer that may be the fastest; ``dense`` among them where zeros are few.

    Args:
        weight: ``[M, K]``.
        lanes: samples side by side.

    Returns:
        Names of ``secateur.runtime.LAYOUTS``, or ``dense``: every weight, in blocks of 16 rows.

    Example:
        >>> import torch
        >>> candidates(torch.eye(64), lanes=64)
        ('even', 'even-wide', 'csr')
    """
    kept = weight != 0
    density = float(kept.float().mean()) if kept.numel() else 0.0
    found = [f"block{unit}" for unit in _UNITS if density < 1 and blocks_fit(kept, unit)]
    if lanes == 1:
        found += ["ell"] if 0.01 < density < 0.7 else []
        found += ["csr"] if density < 0.15 else []
    else:
        found += ["rows"] if 0.1 < density < 0.8 else []
        found += ["even"] if density < 0.4 else []
        found += ["even-wide"] if density < (0.4 if lanes <= 16 else 0.08) else []
        found += ["csr"] if density < 0.08 else []
    if density > 0.3 or not found:
        found.append("dense")
    return tuple(found)
