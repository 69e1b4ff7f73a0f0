"""A parameter cut into blocks of c consecutive weights, and weights that make up for those that go."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

__all__ = ["check_blocks", "compensated", "in_blocks", "out_of_blocks"]

_ELEMENTS = 2**23
"""Of the systems that are solved at a time, 64 MiB in float64."""


def check_blocks(block: object, damping: float, average: object) -> None:
    """Refuse options of block-wise curvature that are out of range.

    Raises:
        ValueError: with all three of them.
    """
    if type(block) is not int or block < 1 or type(average) is not int or average < 1 or not damping > 0:
        raise ValueError(
            f"woodfisher(block={block!r}, damping={damping!r}, average={average!r}): block and average are whole "
            "numbers from 1, damping is above 0"
        )


def in_blocks(tensor: Tensor, block: int) -> Tensor:
    """Flat blocks, the last one filled up with zeros.

    Args:
        tensor: any shape, n elements.
        block: c, from 1; no block is longer than the tensor.

    Returns:
        ``[ceil(n / c), c]``.

    Example:
        >>> in_blocks(torch.arange(1, 6), 3).tolist()
        [[1, 2, 3], [4, 5, 0]]
    """
    flat = tensor.flatten()
    size = max(1, min(block, flat.numel()))
    return torch.nn.functional.pad(flat, (0, -flat.numel() % size)).reshape(-1, size)


def out_of_blocks(blocks: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """The inverse of ``in_blocks``.

    Example:
        >>> out_of_blocks(torch.tensor([[1, 2, 3], [4, 5, 0]]), (5,)).tolist()
        [1, 2, 3, 4, 5]
    """
    return blocks.flatten()[: torch.Size(shape).numel()].reshape(shape)


def compensated(weight: Tensor, removed: Tensor, inverse: Tensor) -> Tensor:
    """Weights that go become zero, and the others move: ``w - A E (E^T A E)^-1 E^T w``, A the inverse curvature.

    E picks all removed weights of a block, which are solved for jointly: the sum of updates for one weight each would
    neither be the best nor make them zero.

    Args:
        weight: ``[blocks, c]``.
        removed: bool, the same shape; weights that are zero already are left out of the system.
        inverse: ``[blocks, c, c]``, symmetric, positive definite on the removed weights.

    Returns:
        ``[blocks, c]`` in float64; zero where removed.

    Example:
        >>> h = torch.tensor([[2.0, 1.9, 0.0], [1.9, 2.0, 0.1], [0.0, 0.1, 0.5]], dtype=torch.float64)
        >>> w, gone = torch.tensor([[1.0, 0.8, 0.9]]), torch.tensor([[False, True, False]])
        >>> [round(value, 6) for value in compensated(w, gone, h.inverse()[None])[0].tolist()]
        [1.76, 0.0, 1.06]

    Reference:
        Hassibi, Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon".
    """
    size = weight.shape[1]
    step = max(1, _ELEMENTS // (size * size))
    parts = [
        _solved(weight[at : at + step], removed[at : at + step], inverse[at : at + step])
        for at in range(0, len(weight), step)
    ]
    return torch.cat(parts)


def _solved(weight: Tensor, removed: Tensor, inverse: Tensor) -> Tensor:
    w, inverse = weight.double(), inverse.double()
    gone = removed & (weight != 0)
    both = gone.unsqueeze(2) & gone.unsqueeze(1)
    eye = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    system = torch.where(both, inverse, eye)
    share = cast("Tensor", torch.linalg.solve(system, torch.where(gone, w, torch.zeros_like(w)).unsqueeze(2)))  # pyright: ignore[reportUnknownMemberType]
    moved = w - (inverse @ share).squeeze(2)
    return torch.where(removed | (weight == 0), torch.zeros_like(moved), moved)
