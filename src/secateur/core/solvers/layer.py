"""The problem of one layer: keep its outputs on given inputs, ``min ||(W - W') X||``, with some weights gone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core.canonical import grouped_shape, to_grouped, to_parameter
from secateur.core.real import is_real
from secateur.core.typed import cholesky
from secateur.types import NM, KeyLayout

__all__ = ["Layer", "damped", "from_groups", "inverse_of", "relative_error", "to_groups"]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """What a solver is given; float64, on the CPU.

    Attributes:
        weight: ``[groups, rows, columns]``, dense.
        gram: ``[groups, columns, columns]``, ``sum x x^T`` of the inputs, damped.
        kept: bool ``[groups, rows, columns]``; what is not kept stays removed.
        remove: how many weights go in all, those that are gone included; None where ``kept`` or ``pattern`` says so.
        pattern: n of m along the columns, instead of a number.
    """

    weight: Tensor
    gram: Tensor
    kept: Tensor
    remove: int | None = None
    pattern: NM | None = None

    def __post_init__(self) -> None:
        groups, rows, columns = self.weight.shape
        assert self.gram.shape == (groups, columns, columns), (self.weight.shape, self.gram.shape)
        assert self.kept.shape == self.weight.shape, (self.weight.shape, self.kept.shape)
        gone = int((~self.kept).sum())
        if self.remove is not None and not gone <= self.remove <= groups * rows * columns:
            raise ValueError(f"{self.remove} of {self.kept.numel()} weights cannot go: {gone} are gone already")


def damped(gram: Tensor, damping: float) -> Tensor:
    """``G + damping * mean(diag G) * I``; inputs that are always zero keep a positive diagonal.

    Args:
        gram: ``[..., columns, columns]``.
        damping: share of the mean diagonal, 0 or more; 0 changes nothing.

    Returns:
        float64, like ``gram``.

    Raises:
        ValueError: for a damping that is negative, not finite, or no number.

    Example:
        >>> damped(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), 0.5).tolist()
        [[2.0, 0.0], [0.0, 4.0]]
    """
    if not (is_real(damping) and damping >= 0.0):
        raise ValueError(f"damping={damping!r}: a share of the mean diagonal, finite, 0 or more; 0.01 is usual")
    mean = gram.double().diagonal(dim1=-2, dim2=-1).mean(-1)
    level = torch.where(mean > 0, mean, 1.0)[..., None, None]
    return gram.double() + damping * level * torch.eye(gram.shape[-1], dtype=torch.float64, device=gram.device)


def inverse_of(gram: Tensor) -> Tensor:
    """The inverse of a positive definite gram ``[columns, columns]``.

    Raises:
        ValueError: where it is not positive definite.

    Example:
        >>> inverse_of(torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64)).diagonal().tolist()
        [0.25, 1.0]
    """
    factor, wrong = cholesky(gram)
    if wrong:
        raise ValueError(
            "the gram is not positive definite: inputs that are always zero, or fewer tokens than columns. Give a "
            "damping above 0, or more batches"
        )
    return torch.cholesky_inverse(factor)


def to_groups(tensor: Tensor, gram: Tensor, layout: KeyLayout) -> Tensor:
    """A parameter as ``[groups, rows, columns]``, as its gram ``[groups, columns, columns]`` sees it.

    Example:
        >>> to_groups(torch.ones(6, 4, 3, 3), torch.ones(2, 36, 36), KeyLayout((6, 4, 3, 3), "conv", 2)).shape
        torch.Size([2, 3, 36])
    """
    groups, columns = gram.shape[0], gram.shape[-1]
    matrix = to_grouped(tensor, layout) if _as_convolution(layout, columns) else tensor
    return matrix.reshape(groups, -1, columns)


def from_groups(matrix: Tensor, layout: KeyLayout) -> Tensor:
    """The inverse of ``to_groups``."""
    turned = _as_convolution(layout, matrix.shape[-1])
    return to_parameter(matrix, layout) if turned else matrix.reshape(layout.shape)


def relative_error(weight: Tensor, changed: Tensor, gram: Tensor) -> float:
    """``||(W - W') X|| / ||W X||`` from the gram; 0 where the layer's outputs are all zero.

    Args:
        weight: ``[groups, rows, columns]``.
        changed: the same shape.
        gram: ``[groups, columns, columns]``, not damped.

    Returns:
        A share of the root mean square of the outputs, without bias.

    Example:
        >>> relative_error(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 4.0]]]), torch.eye(2)[None])
        0.6
    """
    whole, off = (_energy(part.double(), gram.double()) for part in (weight, weight.double() - changed.double()))
    return math.sqrt(max(off, 0.0) / whole) if whole > 0 else 0.0


def _energy(matrix: Tensor, gram: Tensor) -> float:
    return float((torch.bmm(matrix, gram) * matrix).sum())


def _as_convolution(layout: KeyLayout, columns: int) -> bool:
    return layout.kind != "linear" and math.prod(grouped_shape(layout)[2:]) == columns
