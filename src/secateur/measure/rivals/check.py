"""How far the outputs of a runtime are from those of eager torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["off_by", "verdict"]


def off_by(reference: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[float, float]:
    """Largest difference, max |a - b|, and the same as a share of max |a|; the worst of all outputs.

    Infinite where the two cannot be compared: other shapes, another number of outputs, or NaN and infinities in other
    places. Whole numbers count like others: a network that returns classes is checked on classes.

    Args:
        reference: outputs of eager torch.
        found: outputs of the runtime, any dtypes.

    Returns:
        (absolute, relative), at least 0.

    Example:
        >>> off_by([torch.tensor([1.0, -4.0])], [torch.tensor([1.0, -3.0])])
        (1.0, 0.25)
        >>> off_by([torch.zeros(2)], [torch.zeros(3)])
        (inf, inf)
    """
    if [tuple(a.shape) for a in reference] != [tuple(b.shape) for b in found]:
        return math.inf, math.inf
    pairs = [_one(a.double(), b.double()) for a, b in zip(reference, found, strict=True)]
    return max(absolute for absolute, _ in pairs), max(relative for _, relative in pairs)


def verdict(reference: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> str:
    """Why the outputs are wrong, in a few words; empty where they are not.

    Args:
        reference: outputs of eager torch.
        found: outputs of the runtime.
        tolerance: largest relative difference.

    Returns:
        A clause, or "".

    Example:
        >>> verdict([torch.ones(2)], [torch.zeros(2)], 1e-3)
        'differs from eager by 1, which is 1 of the largest output; 0.001 is allowed'
    """
    absolute, relative = off_by(reference, found)
    if relative <= tolerance:
        return ""
    if math.isinf(relative):
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (reference, found)]
        if shapes[0] != shapes[1]:
            return f"returns tensors of shape {shapes[1]}, eager {shapes[0]}"
        return "returns NaN or infinity where eager does not, or the other way round"
    return (
        f"differs from eager by {absolute:.3g}, which is {relative:.3g} of the largest output; {tolerance:g} is allowed"
    )


def _one(a: Tensor, b: Tensor) -> tuple[float, float]:
    finite = a.isfinite()
    if not a.numel():
        return 0.0, 0.0
    if not torch.equal(finite, b.isfinite()) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return math.inf, math.inf
    if not finite.any():
        return 0.0, 0.0
    absolute = float((a - b)[finite].abs().max())
    return absolute, absolute / (float(a[finite].abs().max()) or 1.0)
