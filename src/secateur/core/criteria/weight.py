"""Criteria that read the weight alone, and random."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import CriterionEntry

__all__ = ["ROWS", "l0", "l1", "l2", "linf", "random"]


def l1(weight: Tensor) -> Tensor:
    """Magnitude, ``s = |w|``; a unit has the mean (``reduce="sum"`` gives the L1 norm).

    Args:
        weight: parameter, any shape.

    Returns:
        Scores like ``weight``, at least float32. Low scores go first.

    Example:
        >>> import torch
        >>> l1(torch.tensor([3.0, -4.0])).tolist()
        [3.0, 4.0]

    Reference:
        Han, Pool, Tran, Dally 2015, arXiv 1506.02626; for filters Li et al. 2017, arXiv 1608.08710.
    """
    return wide(weight).abs()


def l2(weight: Tensor) -> Tensor:
    """Magnitude again, ``s = |w|``; a unit has the root mean square (``reduce="l2"`` gives the L2 norm).

    Args:
        weight: parameter, any shape.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> import torch
        >>> l2(torch.tensor([3.0, -4.0])).tolist()
        [3.0, 4.0]

    Reference:
        Han, Pool, Tran, Dally 2015, arXiv 1506.02626.
    """
    return wide(weight).abs()


def linf(weight: Tensor) -> Tensor:
    """Largest magnitude, ``s = |w|``; a unit has the maximum.

    Args:
        weight: parameter, any shape.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> import torch
        >>> linf(torch.tensor([3.0, -4.0])).tolist()
        [3.0, 4.0]

    Reference:
        Follows from the definition of the norm.
    """
    return wide(weight).abs()


def l0(weight: Tensor) -> Tensor:
    """Non-zero or not, ``s = [w != 0]``; a unit has the share of its non-zeros (``reduce="sum"``: the count).

    Only informative where the tensor is sparse already; elsewhere everything ties and position decides.

    Args:
        weight: parameter, any shape.

    Returns:
        Scores like ``weight``, 0 or 1, at least float32.

    Example:
        >>> import torch
        >>> l0(torch.tensor([3.0, 0.0])).tolist()
        [1.0, 0.0]

    Reference:
        Follows from the definition of the norm; the regulariser of that name is Louizos et al. 2017, arXiv 1712.01312.
    """
    return (weight != 0).to(wide(weight).dtype)


def random(noise: Tensor) -> Tensor:
    """Random, ``s = u`` with ``u`` uniform per unit from an explicit generator: the baseline of all criteria.

    Args:
        noise: uniform numbers in the grid shape of the unit.

    Returns:
        The noise.

    Example:
        >>> import torch
        >>> random(torch.tensor([0.25, 0.5])).tolist()
        [0.25, 0.5]

    Reference:
        A baseline asked for by Blalock et al. 2020, arXiv 2003.03033 (from memory, not verified).
    """
    return wide(noise)


_HAN = "Han et al. 2015, arXiv 1506.02626"
_MAGNITUDE = CriterionEntry(l1, "weight", "mean", "none", "magnitude, |w|", _HAN, elementwise=True)

ROWS: Mapping[str, CriterionEntry] = {
    "magnitude": _MAGNITUDE,
    "l1": _MAGNITUDE,
    "l2": CriterionEntry(l2, "weight", "rms", "none", "|w|, a unit by its root mean square", _HAN, elementwise=True),
    "linf": CriterionEntry(
        linf, "weight", "max", "none", "|w|, a unit by its largest weight", "definition", elementwise=True
    ),
    "l0": CriterionEntry(l0, "weight", "mean", "none", "share of non-zeros, [w != 0]", "definition", elementwise=True),
    "random": CriterionEntry(random, "unit", "mean", "none", "uniform noise, the baseline", "baseline"),
}
