"""Reduce scores over the members of a unit, and check shapes by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import final

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import Layout, Reduce, Tensors

__all__ = ["MemberMean", "check_shapes", "known_reduce", "reduce_axes"]


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


_SUMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda rows: rows.sum(1, dtype=torch.float64),
    "l2": lambda rows: rows.double().square().sum(1),
    "max": lambda rows: rows.amax(1).double(),
}
"""How the elements at one position come together, in float64; ``mean`` and ``rms`` divide their sum later."""


@final
class MemberMean:
    """Scores of units that several tensors make up: reduced in each member, then the mean of those that have the unit.

    On the CPU: index_add on a GPU would add in a random order.

    Args:
        units: how many.

    Example:
        >>> mean = MemberMean(2)
        >>> mean.add(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), torch.tensor([0, 1]), "mean")
        >>> mean.add(torch.tensor([[4.0]]), torch.tensor([0]), "mean")
        >>> mean.result([torch.zeros(1)]).tolist()
        [3.0, 5.0]
    """

    def __init__(self, units: int) -> None:
        self._total = torch.zeros(units, dtype=torch.float64)
        self._members = torch.zeros(units, dtype=torch.int64)

    def add(self, rows: Tensor, owner: Tensor, reduce: Reduce) -> None:
        """One member: ``rows`` [positions, elements], ``owner`` [positions]."""
        along = {"mean": "sum", "rms": "l2"}.get(reduce, reduce)
        values, own = _SUMS[along](wide(rows)).cpu(), torch.zeros_like(self._total)
        counts = own.index_add(0, owner, torch.full(owner.shape, rows.shape[1], dtype=torch.float64))
        if along == "max":
            own = (own - torch.inf).scatter_reduce_(0, owner, values, "amax")
        else:
            own.index_add_(0, owner, values)
        own = own / counts.clamp(min=1) if reduce in ("mean", "rms") else own
        own = own.sqrt() if along == "l2" else own
        there = counts > 0
        self._total[there] += own[there]
        self._members += there

    def missing(self) -> int | None:
        """The first unit that no member has."""
        none = (self._members == 0).nonzero()
        return int(none[0]) if len(none) else None

    def result(self, like: Iterable[Tensor]) -> Tensor:
        """``[units]``, on the device of the first of them, in float64 if one of them is."""
        tensors = list(like)
        double = any(tensor.dtype == torch.float64 for tensor in tensors)
        return (self._total / self._members).to(tensors[0].device, torch.float64 if double else torch.float32)
