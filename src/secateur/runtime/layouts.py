"""The table of packed layouts: what a kernel reads, how it is packed and unpacked, and how large its pieces are.

A matrix is packed chunk by chunk (of rows, so that their outputs stay in a cache), and inside a chunk K-block by
K-block (of columns, so that their activations stay in the first cache and an index fits a byte). `csrc/spmm` has the
kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from secateur.runtime import columns, ell, nm
from secateur.runtime.columns import RUN, Array, Streams

__all__ = ["LAYOUTS", "WIDEST", "Layout", "Pieces", "even_pieces", "pack_streams", "unpack_streams"]

WIDEST = 675 * RUN
_CHUNK = 8 * RUN  # rows: at 64 samples their outputs take 192 KB of the second cache
_SMALL_CHUNK = RUN  # rows: their outputs stay in the first cache


@dataclass(frozen=True, slots=True)
class Pieces:
    """How a matrix is cut: ``chunk`` rows by ``block`` columns, multiples of 96, with indices of ``bits``."""

    chunk: int
    block: int
    bits: int

    def __post_init__(self) -> None:
        if not RUN <= self.chunk <= WIDEST or self.chunk % RUN:
            raise ValueError(f"chunk={self.chunk}: expected a multiple of {RUN} rows, from {RUN} to {WIDEST}")
        widest = {8: 2 * RUN, 16: WIDEST}.get(self.bits, 0)
        if not RUN <= self.block <= widest or self.block % RUN:
            allowed = f"multiples of {RUN} columns, up to {2 * RUN} with indices of 8 bits and {WIDEST} with 16"
            raise ValueError(f"block={self.block}, bits={self.bits}: expected {allowed}")


@dataclass(frozen=True, slots=True)
class Layout:
    """One row of the table.

    Attributes:
        kernel: the family of kernels in the core: rows, even, csr, blocks, ell or nm.
        unit: rows of a group; of ``blocks`` the height of a block.
        what: in one line, for people.
        cut: (rows, columns, density) -> pieces.
        pack: (weight, mask, columns of a K-block, bits) -> streams of one chunk.
        unpack: (streams, shape, columns of a K-block) -> weight and mask of one chunk.
        per_group: numbers in the counts per group and K-block.
        sizes: counts of one chunk -> how many indices and values belong to them.
        inputs: of a column: 2 in bf16 (`secateur.runtime.pairs`), 4 in int8 (`secateur.runtime.quads`).
    """

    kernel: str
    unit: int
    what: str
    cut: Callable[[int, int, float], Pieces]
    pack: Callable[[Array, Array, int, int], Streams]
    unpack: Callable[[Streams, tuple[int, int], int], tuple[Array, Array]]
    per_group: int
    sizes: Callable[[Array], tuple[int, int]]
    inputs: int = 1


def even_pieces(length: int, most: int) -> int:
    """The length of pieces of at most ``most`` that are all about as long, in whole runs."""
    pieces = max(-(-length // most), 1)
    return max(-(-length // (pieces * RUN)) * RUN, RUN)


def _cached(rows: int, cols: int, density: float) -> Pieces:
    """K-blocks of 24 or 48 KB of activations: smaller where many weights read them."""
    return Pieces(even_pieces(rows, _CHUNK), RUN if density > 0.15 else 2 * RUN, 8)


def _whole(rows: int, cols: int, density: float) -> Pieces:
    """All columns at once."""
    block = even_pieces(cols, WIDEST)
    return Pieces(_SMALL_CHUNK if block >= cols else even_pieces(rows, _CHUNK), block, 16)


def _named(rows: int, cols: int, density: float) -> Pieces:
    """All columns at once, and many rows to find four alike among."""
    return Pieces(even_pieces(rows, _CHUNK), even_pieces(cols, WIDEST), 16)


def _long(rows: int, cols: int, density: float) -> Pieces:
    """Panels of more than 2112 columns do not fit the second cache."""
    block = even_pieces(cols, 22 * RUN)
    return Pieces(_SMALL_CHUNK if block >= cols else even_pieces(rows, _CHUNK), block, 16)


def _rows_sizes(counts: Array) -> tuple[int, int]:
    by_pattern = counts.reshape(-1, 15).sum(axis=0, dtype=np.int64)
    weights = np.unpackbits(columns.PATTERNS[:, None], axis=1).sum(axis=1, dtype=np.int64)
    return int(by_pattern.sum()), int(by_pattern @ weights)


def _even_sizes(counts: Array) -> tuple[int, int]:
    steps = 4 * int(counts.reshape(-1, 5)[:, 0].sum(dtype=np.int64))
    return steps, steps


def _block_sizes(counts: Array, unit: int) -> tuple[int, int]:
    blocks = int(counts.sum(dtype=np.int64))
    return blocks, unit * blocks


def _blocks(unit: int) -> Layout:
    return Layout(
        "blocks" if unit > 1 else "csr",
        unit,
        f"blocks of {unit} outputs by 1 input" if unit > 1 else "row by row; for sparsity of 98 % and more",
        _long if unit > 1 else _whole,
        partial(columns.pack_blocks, unit=unit),
        partial(columns.unpack_blocks, unit=unit),
        1,
        partial(_block_sizes, unit=unit),
    )


def _lanes(rows: int, what: str) -> Layout:
    return Layout(
        "ell",
        16 * rows,
        what,
        _named,
        partial(ell.pack_ell, rows=rows),
        partial(ell.unpack_ell, rows=rows),
        1,
        partial(ell.sizes_of, rows=rows),
    )


LAYOUTS: dict[str, Layout] = {
    "rows": Layout(
        "rows",
        4,
        "unstructured, 4 rows by occupancy pattern; for sparsity up to 85 %",
        _cached,
        columns.pack_rows,
        columns.unpack_rows,
        15,
        _rows_sizes,
    ),
    "even": Layout(
        "even",
        4,
        "unstructured, 4 rows with like counts; for sparsity from 85 %",
        _cached,
        columns.pack_even,
        columns.unpack_even,
        5,
        _even_sizes,
    ),
    "even-wide": Layout(
        "even",
        4,
        "as even, without K-blocks; for up to 16 samples, or sparsity from 95 %",
        _named,
        columns.pack_even,
        columns.unpack_even,
        5,
        _even_sizes,
    ),
    "csr": _blocks(1),
    "ell": _lanes(1, "unstructured, for one sample"),
    "ell-twin": _lanes(2, "as ell, two rows in a lane; for one sample and sparsity from 92 %"),
    "nm": Layout(
        "nm",
        16,
        "1, 2, 4 or 8 of every 16 inputs in every row (1:4, 2:4, 4:8, ...); for one sample",
        _named,
        nm.pack_nm,
        nm.unpack_nm,
        2,
        nm.sizes_of,
    ),
    "block4": _blocks(4),
    "block8": _blocks(8),
    "block16": _blocks(16),
}
"""Name -> layout. Which one is fastest depends on shape, sparsity, samples and machine: measure."""


def pack_streams(weight: Array, mask: Array, layout: Layout, pieces: Pieces) -> Streams:
    """Counts, indices and values of all chunks, one after the other."""
    rows, cols = weight.shape
    block = columns.spread(pieces.block)
    weight, mask = columns.spread_columns(weight), columns.spread_columns(mask)
    # Where the order of the streams does not depend on the chunks, one pass packs them all.
    step = rows if pieces.block >= cols and layout.kernel != "even" else pieces.chunk
    starts = range(0, rows, step) if rows else range(1)
    return columns.joined(
        [layout.pack(weight[at : at + step], mask[at : at + step], block, pieces.bits) for at in starts]
    )


def unpack_streams(streams: Streams, shape: tuple[int, int], layout: Layout, pieces: Pieces) -> tuple[Array, Array]:
    """The inverse of `pack_streams`: weight and mask. A `ValueError` or `IndexError` if the streams do not fit."""
    rows, cols = shape
    block, wide = columns.spread(pieces.block), columns.spread(cols)
    counts, index, values = streams
    found: list[tuple[Array, Array]] = []
    for start in range(0, rows, pieces.chunk):
        height = min(pieces.chunk, rows - start)
        here = -(-height // layout.unit) * layout.per_group * len(columns.spans(wide, block))
        taken, used = layout.sizes(counts[:here]) if len(counts) >= here else (-1, -1)
        if not 0 <= taken <= len(index) or used > len(values):
            raise ValueError("the streams are too short")
        found.append(layout.unpack((counts[:here], index[:taken], values[:used]), (height, wide), block))
        counts, index, values = counts[here:], index[taken:], values[used:]
    if not found:
        return np.zeros(shape, np.float32), np.zeros(shape, bool)
    weight, mask = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return columns.gathered_columns(weight, cols), columns.gathered_columns(mask, cols)
