"""Pairs of rows without a loop over pairs: products in blocks, nearest neighbours kept up while rows go one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["NOISE", "Nearest", "in_order", "product_blocks", "squared_distances"]

NOISE = 1e-14
"""Distances of float64 rows below this share are rounding: the rows are equal."""

_BLOCK = 512
"""Rows of one product."""


def product_blocks(rows: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Dot products of all pairs, each pair once.

    Args:
        rows: ``[groups, units, n]``; rows of different groups have the product 0.

    Returns:
        ``(first, last, products)``: of the rows from ``first`` to before ``last`` with those from ``first`` on, counted
        through all groups.

    Example:
        >>> [(first, last, made.tolist()) for first, last, made in product_blocks(torch.tensor([[[1.0], [2.0]]]))]
        [(0, 2, [[1.0, 2.0], [2.0, 4.0]])]
    """
    groups, units, _ = rows.shape
    for number, group in enumerate(rows):
        for first in range(0, units, _BLOCK):
            some = group[first : first + _BLOCK]
            start = number * units + first
            products = group.new_zeros(len(some), groups * units - start)
            products[:, : units - first] = some @ group[first:].T
            yield start, start + len(some), products


def squared_distances(rows: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """``||v_a - v_b||^2`` of all pairs, in the blocks of ``product_blocks``; float64 rows, groups are orthogonal."""
    norms = rows.square().sum(2).flatten()
    for first, last, products in product_blocks(rows):
        size = norms[first:last, None] + norms[None, first:]
        made = size - 2 * products
        made[made <= NOISE * size] = 0
        made.diagonal().zero_()
        yield first, last, made


@final
class Nearest:
    """The nearest other row of each row, while rows go.

    It holds the distances of all pairs, in float32 at least; a row that goes costs a look at the rows nearest to it.

    Args:
        blocks: distances as ``product_blocks`` gives products; may be infinite for pairs that do not count.
        n: rows.
        dtype: of what is held.

    Attributes:
        distance: [n], to the nearest row that is there; infinite where there is none, and for rows that are gone.
        of: [n], which one that is; the lowest of equals.

    Example:
        >>> near = Nearest(squared_distances(torch.tensor([[[0.0], [1.0], [3.0]]]).double()), 3, torch.float64)
        >>> near.of.tolist(), near.distance.tolist()
        ([1, 0, 1], [1.0, 1.0, 4.0])
        >>> near.remove(1)
        >>> int(near.of[2]), float(near.distance[2])
        (0, 9.0)
    """

    def __init__(self, blocks: Iterator[tuple[int, int, Tensor]], n: int, dtype: torch.dtype) -> None:
        held = torch.empty(n, n, dtype=dtype)
        for first, last, distances in blocks:
            held[first:last, first:] = distances
            held[last:, first:last] = distances[:, last - first :].T
        held.fill_diagonal_(torch.inf)
        self._held: NDArray[Any] = held.numpy()
        self._gone: NDArray[Any] = np.zeros(n, dtype=self._held.dtype)
        self.of: NDArray[np.int64] = self._held.argmin(1)
        self.distance: NDArray[Any] = self._held[np.arange(n), self.of]

    def remove(self, row: int) -> None:
        """Take a row out."""
        self._gone[row] = self.distance[row] = np.inf
        waiting = np.flatnonzero((self.of == row) & (self._gone == 0))
        if not len(waiting):
            return
        distances = self._held[waiting] + self._gone
        self.of[waiting] = distances.argmin(1)
        self.distance[waiting] = distances[np.arange(len(waiting)), self.of[waiting]]


def in_order(order: Sequence[int], values: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Scores that go in exactly this order: ``values`` made rising, equal ones apart by their last places.

    Args:
        order: all units, the first to go first.
        values: of each in that order; where one is lower than one before it, it is raised.
        dtype: of the scores.

    Returns:
        ``[units]``.

    Example:
        >>> in_order([2, 0, 1], [0.0, 0.0, 5.0], torch.float32).tolist()
        [1.1754943508222875e-38, 5.0, 0.0]
    """
    rising = torch.tensor(values, dtype=torch.float64).cummax(0).values.to(dtype).numpy()
    tiny = np.finfo(rising.dtype).tiny  # smaller numbers may be flushed to zero
    for at in range(1, len(rising)):
        if rising[at] <= rising[at - 1]:
            rising[at] = (
                tiny if 0 <= rising[at - 1] < tiny else np.nextafter(rising[at - 1], np.inf, dtype=rising.dtype)
            )
    scores = torch.empty(len(order), dtype=dtype)
    scores[torch.tensor(order)] = torch.as_tensor(rising)
    return scores
