"""Scores that are made when they are read, piece by piece, so that those of a large network never stand together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias, final

import torch
from torch import Tensor

from secateur.types import Tensors

__all__ = ["PIECE", "Pieces", "Streamed", "dtype_of", "in_pieces", "left_over", "pieces_of", "shape_of"]

PIECE = 1 << 19
"""Elements of a piece: what is computed from one stays in the cache."""

Pieces: TypeAlias = Callable[[], Iterator[Tensor]]
"""Starts a pass over a flat tensor, ``PIECE`` elements at a time (filtered pieces are shorter)."""


@final
class Streamed(Mapping[str, Tensor]):
    """Named tensors, each made anew whenever it is read, whole or in pieces.

    Args:
        shapes: name -> shape.
        passes: name -> its flat elements in pieces, the same at every pass.

    Example:
        >>> twice = Streamed({"a": (2, 2)}, {"a": lambda: iter([torch.ones(3), torch.zeros(1)])})
        >>> twice["a"].tolist(), len(list(twice.pieces("a")))
        ([[1.0, 1.0], [1.0, 0.0]], 2)
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], passes: Mapping[str, Pieces]) -> None:
        self._shapes, self._passes = shapes, passes

    def __getitem__(self, key: str) -> Tensor:
        return torch.cat(list(self._passes[key]())).reshape(self._shapes[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def pieces(self, key: str) -> Iterator[Tensor]:
        """One pass over the flat elements of a tensor."""
        return self._passes[key]()

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor, without making it."""
        return self._shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        """The type of a tensor, of which one piece is made."""
        return next(self._passes[key]()).dtype


def in_pieces(flat: Tensor) -> Iterator[Tensor]:
    """Consecutive views of ``PIECE`` elements; of an empty tensor one empty view.

    Example:
        >>> [len(piece) for piece in in_pieces(torch.zeros(PIECE + 1))] == [PIECE, 1]
        True
    """
    for start in range(0, max(1, flat.numel()), PIECE):
        yield flat[start : start + PIECE]


def pieces_of(tensors: Tensors, key: str) -> Pieces:
    """How to pass over one of several tensors, streamed or not."""
    if isinstance(tensors, Streamed):
        return lambda: tensors.pieces(key)
    return lambda: in_pieces(tensors[key].flatten())


def shape_of(tensors: Tensors, key: str) -> tuple[int, ...]:
    """The shape of one of several tensors."""
    return tensors.shape(key) if isinstance(tensors, Streamed) else tuple(tensors[key].shape)


def dtype_of(tensors: Tensors) -> torch.dtype:
    """float64 where any of them is, else float32, which holds the narrower ones."""
    types = {tensors.dtype(key) if isinstance(tensors, Streamed) else tensors[key].dtype for key in tensors}
    return torch.float64 if torch.float64 in types else torch.float32


def left_over(scores: Tensors, alive: Tensors) -> Streamed:
    """The scores of the units that are there, flat.

    Args:
        scores: unit scores.
        alive: unit masks, of some of the keys.

    Returns:
        Key -> flat scores where the mask is True.

    Example:
        >>> kept = {"a": torch.tensor([True, False, True])}
        >>> left_over({"a": torch.tensor([1.0, 2.0, 3.0])}, kept)["a"].tolist()
        [1.0, 3.0]
    """

    def passes(key: str) -> Pieces:
        def start() -> Iterator[Tensor]:
            masks = in_pieces(alive[key].bool().flatten())
            for piece, mask in zip(pieces_of(scores, key)(), masks, strict=True):
                yield piece[mask]

        return start

    shapes = {key: (int(torch.count_nonzero(alive[key])),) for key in alive}
    return Streamed(shapes, {key: passes(key) for key in alive})
