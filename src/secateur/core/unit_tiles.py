"""Units that are tiles of the 2-D view ``[O, I/g*k]``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.core.canonical import grouped_shape, to_grouped, to_parameter, wide
from secateur.core.reduce import check_shapes, known_reduce
from secateur.types import KeyLayout, Layout, Reduce, Tensors

__all__ = ["Block"]


@dataclass(frozen=True, slots=True)
class Block:
    """A tile of ``rows x columns`` of the 2-D view ``[O, I/g*kh*kw]``; tiles at the edge may be smaller.

    Example:
        >>> Block(4, 1).grid(KeyLayout((10, 6)))
        (3, 6)
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        for side in (self.rows, self.columns):
            if type(side) is not int or side < 1:
                raise ValueError(f"block({self.rows!r}, {self.columns!r}): both sides are whole numbers from 1 on")

    @property
    def spec(self) -> str:
        """``"block(rows, columns)"``."""
        return f"block({self.rows}, {self.columns})"

    def grid(self, layout: KeyLayout) -> tuple[int, ...]:
        """``(ceil(O / rows), ceil(I/g*kh*kw / columns))``."""
        return _grid_tiles(layout, self.rows, self.columns)

    def pool(self, scores: Tensors, layout: Layout, reduce: Reduce = "mean") -> dict[str, Tensor]:
        """Reduce over each tile; a ragged edge tile over its real elements."""
        return _pool_tiles(scores, layout, self.rows, self.columns, reduce)

    def expand(self, unit_masks: Tensors, layout: Layout) -> dict[str, Tensor]:
        """Repeat over each tile."""
        return _expand_tiles(unit_masks, layout, self.rows, self.columns)


def _grid_tiles(layout: KeyLayout, rows: int, columns: int) -> tuple[int, int]:
    """Number of tiles down and across, ragged ones included."""
    height, width = _flat_shape(layout)
    return (-(-height // rows), -(-width // columns))


def _pool_tiles(scores: Tensors, layout: Layout, rows: int, columns: int, reduce: Reduce) -> dict[str, Tensor]:
    """Reduce over tiles of the 2-D view; a ragged edge tile counts its real elements alone."""
    check_shapes("scores", scores, layout, lambda key: layout[key].shape)
    pooled: dict[str, Tensor] = {}
    for key, score in scores.items():
        down, across = _grid_tiles(layout[key], rows, columns)
        flat = to_grouped(score, layout[key]).reshape(_flat_shape(layout[key]))
        pad = (0, across * columns - flat.shape[1], 0, down * rows - flat.shape[0])
        if flat.dtype == torch.bool:
            tiles = F.pad(flat, pad, value=True).reshape(down, rows, across, columns)
            pooled[key] = tiles.all(3).all(1)
        else:
            pooled[key] = _reduce_tiles(flat, pad, (down, rows, across, columns), reduce)
    return pooled


def _expand_tiles(unit_masks: Tensors, layout: Layout, rows: int, columns: int) -> dict[str, Tensor]:
    """Repeat tile masks over their elements into parameter shape."""
    check_shapes("unit masks", unit_masks, layout, lambda key: _grid_tiles(layout[key], rows, columns))
    masks: dict[str, Tensor] = {}
    for key, mask in unit_masks.items():
        height, width = _flat_shape(layout[key])
        flat = mask.repeat_interleave(rows, 0)[:height].repeat_interleave(columns, 1)[:, :width]
        masks[key] = to_parameter(flat, layout[key])
    return masks


def _flat_shape(layout: KeyLayout) -> tuple[int, int]:
    groups, outputs, *rest = grouped_shape(layout)
    return (groups * outputs, math.prod(rest))


def _reduce_tiles(flat: Tensor, pad: tuple[int, ...], tiles: tuple[int, int, int, int], reduce: Reduce) -> Tensor:
    known_reduce(reduce)
    flat = wide(flat)
    outside = -math.inf if reduce == "max" else 0.0
    tiled = F.pad(flat, pad, value=outside).reshape(tiles)
    if reduce == "max":
        return tiled.amax((1, 3))
    down, rows, across, columns = tiles
    heights = torch.full((down, 1), rows, dtype=flat.dtype, device=flat.device)
    widths = torch.full((1, across), columns, dtype=flat.dtype, device=flat.device)
    heights[-1] -= pad[3]
    widths[:, -1] -= pad[1]
    if reduce in ("sum", "mean"):
        total = tiled.sum((1, 3))
        return total if reduce == "sum" else total / (heights * widths)
    squares = tiled.double().square().sum((1, 3))
    squares = squares if reduce == "l2" else squares / (heights * widths)
    return squares.sqrt().to(flat.dtype)
