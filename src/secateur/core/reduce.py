"""Reduce scores over the members of a unit, and check shapes by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import Layout, Reduce, Tensors

__all__ = ["check_shapes", "known_reduce", "reduce_axes"]


def check_shapes(what: str, tensors: Tensors, layout: Layout, expected: Callable[[str], tuple[int, ...]]) -> None:
    """Refuse tensors of unknown names or of other shapes than the layout says.

    Raises:
        ValueError: naming the parameter and both shapes.
    """
    for key, tensor in tensors.items():
        if key not in layout:
            raise ValueError(f"{what}: {key!r} is not in the layout, which knows {list(layout)}")
        if tuple(tensor.shape) != expected(key):
            raise ValueError(
                f"{what} of {key!r} have shape {tuple(tensor.shape)}, but {expected(key)} is needed "
                f"for a parameter of shape {layout[key].shape}"
            )


def reduce_axes(scores: Tensor, axes: tuple[int, ...], reduce: Reduce) -> Tensor:
    """Reduce over axes and keep them at size 1; bool tensors by "all members kept"."""
    if scores.dtype == torch.bool:
        for axis in axes:
            scores = scores.all(axis, keepdim=True)
        return scores
    known_reduce(reduce)
    scores = wide(scores)
    if not axes:
        return scores.abs() if reduce in ("l2", "rms") else scores
    if reduce == "sum":
        return scores.sum(axes, keepdim=True)
    if reduce == "mean":
        return scores.mean(axes, keepdim=True)
    if reduce == "max":
        return scores.amax(axes, keepdim=True)
    squares = scores.double().square()  # float32 squares of small scores would be zero
    squares = squares.sum(axes, keepdim=True) if reduce == "l2" else squares.mean(axes, keepdim=True)
    return squares.sqrt().to(scores.dtype)


def known_reduce(reduce: str) -> None:
    """Refuse a word that is no way to reduce."""
    if reduce not in ("mean", "sum", "l2", "rms", "max"):
        raise ValueError(f"reduce={reduce!r} is unknown: take 'mean', 'sum', 'l2', 'rms' or 'max'")
