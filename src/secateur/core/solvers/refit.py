"""Least squares of the weights that stayed."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur import native
from secateur.core.solvers.layer import Layer

__all__ = ["refit"]


def refit(layer: Layer) -> tuple[Tensor, Tensor]:
    """Refit every row on what it keeps, ``w'_S = H_SS^-1 H_S: w``, the exact minimum of ``(w - w')^T H (w - w')``.

    H is the damped gram, so that damping holds the kept weights where they were; rows that keep all stay as they are.

    Args:
        layer: with its mask; ``remove`` and ``pattern`` are not read.

    Returns:
        New weights and the mask, ``[groups, rows, columns]``.

    Raises:
        ValueError: where the gram of a support is not positive definite.

    Example:
        >>> weight, gram = torch.tensor([[[1.0, 1.0]]]).double(), torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]).double()
        >>> refit(Layer(weight, gram, torch.tensor([[[True, False]]])))[0].tolist()
        [[[1.5, 0.0]]]

    Reference:
        The normal equations of least squares.
    """
    new = torch.empty_like(layer.weight)
    for group, (weight, gram, kept) in enumerate(zip(layer.weight, layer.gram, layer.kept, strict=True)):
        part = ~kept.all(1)
        new[group] = weight
        new[group, part] = native.refit_rows(gram, (weight @ gram)[part], kept[part])
    return new, layer.kept
