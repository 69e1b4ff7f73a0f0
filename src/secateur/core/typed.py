"""Typed faces of the torch functions that torch leaves without types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

__all__ = ["cholesky", "chunks", "split", "unique"]


def chunks(tensor: Tensor, size: int) -> tuple[Tensor, ...]:
    """Consecutive pieces along the first axis, of so many rows each."""
    return cast("tuple[Tensor, ...]", tensor.split(size))  # pyright: ignore[reportUnknownMemberType]


def split(flat: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Consecutive pieces of a flat tensor."""
    return cast("tuple[Tensor, ...]", flat.split(list(sizes)))  # pyright: ignore[reportUnknownMemberType]


def unique(flat: Tensor) -> tuple[Tensor, Tensor]:
    """For each element the place of its value among the distinct ones in ascending order, and how often each occurs."""
    found = torch.unique(flat, return_inverse=True, return_counts=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    _, place, counts = cast("tuple[Tensor, Tensor, Tensor]", found)
    return place, counts


def cholesky(matrix: Tensor) -> tuple[Tensor, bool]:
    """The lower factor, and whether the matrix was not positive definite."""
    found = torch.linalg.cholesky_ex(matrix)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    factor, info = cast("tuple[Tensor, Tensor]", found)
    return factor, bool(info)
