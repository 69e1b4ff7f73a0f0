"""Reduce scores over the members of a unit, and check shapes by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import final

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import Layout, Reduce, Tensors

__all__ = ["MemberScores", "check_shapes", "known_reduce", "reduce_axes"]


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
class MemberScores:
    """Scores of units that several tensors (members) make up.

    In member m a unit has ``n_m`` elements, and ``T_m`` is their sum, norm or maximum. Over the members that have it:

        sum, l2, max    mean_m T_m
        mean            mean_m T_m / mean_m n_m          rms    mean_m T_m / mean_m sqrt(n_m)

    ``mean`` and ``rms`` divide by what ones would come to, so that units of small and large layers are comparable;
    within a unit a large member still counts for more than a small one, as its sum or norm is. Pooled, all elements are
    one member.

    On the CPU: index_add on a GPU would add in a random order.

    Args:
        units: how many.
        reduce: the elements of one member.
        pooled: reduce over the elements of all members at once instead.

    Example:
        >>> for pooled in (False, True):
        ...     scores = MemberScores(2, "l2", pooled)
        ...     scores.add(torch.tensor([[3.0, 4.0], [5.0, 0.0]]), torch.tensor([0, 1]))
        ...     scores.add(torch.tensor([[12.0]]), torch.tensor([0]))
        ...     scores.result([torch.zeros(1)]).tolist()
        [8.5, 5.0]
        [13.0, 5.0]
    """

    def __init__(self, units: int, reduce: Reduce, pooled: bool = False) -> None:
        self._reduce, self._pooled = reduce, pooled
        self._along = {"mean": "sum", "rms": "l2"}.get(reduce, reduce)
        self._none = torch.full((units,), -torch.inf if reduce == "max" else 0.0, dtype=torch.float64)
        self._all, self._count = self._none.clone(), torch.zeros_like(self._none)
        # over members: of what each comes to, of what ones in its place would come to, how many there are
        self._total, self._ones, self._members = (torch.zeros_like(self._none) for _ in range(3))

    def add(self, rows: Tensor, owner: Tensor) -> None:
        """One member: ``rows`` [positions, elements], ``owner`` [positions]."""
        values, own = _SUMS[self._along](wide(rows)).cpu(), self._none.clone()
        counts = torch.zeros_like(own).index_add_(0, owner, torch.full(owner.shape, rows.shape[1], dtype=own.dtype))
        if self._along == "max":
            own.scatter_reduce_(0, owner, values, "amax")
            self._all = self._all.maximum(own)
        else:
            own.index_add_(0, owner, values)
            self._all += own
        there = counts > 0
        self._count += counts
        self._members += there
        self._ones += self._rooted(counts)
        self._total[there] += self._rooted(own)[there]

    def missing(self) -> int | None:
        """The first unit that no member has."""
        none = (self._members == 0).nonzero()
        return int(none[0]) if len(none) else None

    def result(self, like: Iterable[Tensor]) -> Tensor:
        """``[units]``, on the device of the first of them, in float64 if one of them is."""
        tensors = list(like)
        double = any(tensor.dtype == torch.float64 for tensor in tensors)
        return self.scores().to(tensors[0].device, torch.float64 if double else torch.float32)

    def scores(self) -> Tensor:
        """``[units]`` in float64 on the CPU; of a unit that no member has it means nothing."""
        if self._pooled:
            found, ones = self._rooted(self._all), self._rooted(self._count)
        else:
            found, ones = self._total / self._members, self._ones / self._members
        return found / ones if self._reduce in ("mean", "rms") else found

    def _rooted(self, sums: Tensor) -> Tensor:
        return sums.sqrt() if self._along == "l2" else sums
