"""Packing by columns: groups of four rows by pattern, single rows, blocks. NumPy arrays in, streams out, and back.

Every K-block (``block`` columns) has its own run of counts, local indices and values; `csrc/spmm/kernels.h` says in
which order. Shapes: weight and mask ``[M, K]``; a group has ``unit`` rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PATTERNS",
    "RUN",
    "Array",
    "Streams",
    "gathered_columns",
    "groups_of",
    "joined",
    "pack_blocks",
    "pack_csr",
    "pack_even",
    "pack_rows",
    "ragged",
    "scattered",
    "spans",
    "spread",
    "spread_columns",
    "unpack_blocks",
    "unpack_even",
    "unpack_rows",
]

Array: TypeAlias = NDArray[Any]
Streams: TypeAlias = tuple[Array, Array, Array]
"""Counts, index, values."""

RUN = 96
"""Features that lie side by side in a panel; a place of zeros follows them (csrc/program/panel.h)."""

_ROWS = np.arange(4, dtype=np.uint8)
PATTERNS = np.arange(1, 16, dtype=np.uint8)


def spans(cols: int, block: int) -> list[tuple[int, int]]:
    """First and last column of every K-block; one empty block for a matrix without columns."""
    return [(start, min(start + block, cols)) for start in range(0, max(cols, 1), block)]


def spread(features: int) -> int:
    """Places that so many features take in a panel, the zeros behind every run counted."""
    return features + -(-features // RUN)


def spread_columns(matrix: Array) -> Array:
    """``[M, K]`` -> ``[M, places]``: a column of zeros behind every run of columns and behind the last."""
    rows, cols = matrix.shape
    wide = np.zeros((rows, spread(cols)), matrix.dtype)
    for start in range(0, cols, RUN):
        wide[:, spread(start) : spread(start) + min(RUN, cols - start)] = matrix[:, start : start + RUN]
    return wide


def gathered_columns(wide: Array, cols: int) -> Array:
    """The inverse of `spread_columns`."""
    return wide[:, np.arange(cols) + np.arange(cols) // RUN]


def groups_of(matrix: Array, unit: int) -> Array:
    """Rows in groups ``[groups, unit, K]``; rows that the last group lacks are 0."""
    missing = -len(matrix) % unit
    if missing:
        matrix = np.concatenate([matrix, np.zeros((missing, matrix.shape[1]), matrix.dtype)])
    return matrix.reshape(len(matrix) // unit, unit, matrix.shape[1])


def ragged(counts: Array) -> tuple[Array, Array]:
    """For every item of runs that follow each other: its run, and its place in the run."""
    sizes = counts.reshape(-1).astype(np.int64)
    run = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.cumsum(sizes) - sizes
    return run, np.arange(len(run)) - starts[run]


def joined(parts: Sequence[Streams]) -> Streams:
    """Streams that follow each other."""
    counts, index, values = (np.concatenate(streams) for streams in zip(*parts, strict=True))
    return counts, index, values


def pack_rows(weight: Array, mask: Array, block: int, bits: int) -> Streams:
    """Groups of 4 rows; inside a group and K-block the columns stand by occupancy pattern, then by place."""
    grouped = groups_of(mask, 4).view(np.uint8)
    pattern = grouped[:, 0] | grouped[:, 1] << 1 | grouped[:, 2] << 2 | grouped[:, 3] << 3
    by_column = np.ascontiguousarray(groups_of(weight, 4).transpose(0, 2, 1))  # [G, K, 4]
    counts: list[Array] = []
    index: list[Array] = []
    values: list[Array] = []
    integer = np.dtype(f"u{bits // 8}")
    for start, end in spans(weight.shape[1], block):
        here = pattern[:, start:end]
        order = np.argsort(here, axis=1, kind="stable")
        ordered = np.take_along_axis(here, order, 1)
        keys = here + (np.arange(len(here)) * 16)[:, None]
        counts.append(np.bincount(keys.reshape(-1), minlength=16 * len(here)).reshape(-1, 16)[:, 1:].reshape(-1))
        index.append(order[ordered > 0])
        kept = (ordered[:, :, None] >> _ROWS & 1).view(bool)
        values.append(np.take_along_axis(by_column[:, start:end], order[:, :, None], 1)[kept])
    return np.concatenate(counts).astype(integer), np.concatenate(index).astype(integer), np.concatenate(values)


def unpack_rows(streams: Streams, shape: tuple[int, int], block: int) -> tuple[Array, Array]:
    """The inverse of `pack_rows`: weight and mask."""
    counts, index, values = streams
    rows, cols = shape
    groups = -(-rows // 4)
    run, _ = ragged(counts)  # runs are [K-block, group, pattern]
    pattern = PATTERNS[run % 15]
    column = index.astype(np.int64) + run // (15 * groups) * block if groups else index.astype(np.int64)
    item, row = np.nonzero(pattern[:, None] >> _ROWS & 1)
    where = (run // 15 % max(groups, 1))[item] * 4 + row, column[item]
    return scattered(where, values, (4 * groups, cols), rows)


def pack_csr(weight: Array, mask: Array, block: int, bits: int) -> Streams:
    """Row by row."""
    counts = [np.count_nonzero(mask[:, start:end], axis=1) for start, end in spans(weight.shape[1], block)]
    index = [np.nonzero(mask[:, start:end])[1] for start, end in spans(weight.shape[1], block)]
    values = [weight[:, start:end][mask[:, start:end]] for start, end in spans(weight.shape[1], block)]
    integer = np.dtype(f"u{bits // 8}")
    return np.concatenate(counts).astype(integer), np.concatenate(index).astype(integer), np.concatenate(values)


def pack_even(weight: Array, mask: Array, block: int, bits: int) -> Streams:
    """Groups of 4 rows with like counts in this K-block; per step an index and a value for each row."""
    parts = [_pack_even(weight[:, start:end], mask[:, start:end], bits) for start, end in spans(weight.shape[1], block)]
    return joined(parts)


def _pack_even(weight: Array, mask: Array, bits: int) -> Streams:
    rows, width = mask.shape
    kept = np.zeros(-(-rows // 4) * 4, np.int64)
    kept[:rows] = np.count_nonzero(mask, axis=1)
    order = np.argsort(kept, kind="stable")
    steps = kept[order].reshape(-1, 4).max(axis=1, initial=0)
    headers = np.concatenate([steps[:, None], (order + order // RUN).reshape(-1, 4)], axis=1)
    # A slot without a weight reads the last place of the K-block, which holds zeros.
    index = np.full((int(steps.sum()), 4), max(width - 1, 0), np.dtype(f"u{bits // 8}"))
    values = np.zeros(index.shape, np.float32)
    place = np.empty_like(order)  # of each row in the order
    place[order] = np.arange(len(order))
    row, column = np.nonzero(mask)
    _, rank = ragged(kept)
    step = (np.cumsum(steps) - steps)[place[row] // 4] + rank
    index[step, place[row] % 4] = column
    values[step, place[row] % 4] = weight[mask]
    return headers.astype(np.uint16).reshape(-1), index.reshape(-1), values.reshape(-1)


def unpack_even(streams: Streams, shape: tuple[int, int], block: int) -> tuple[Array, Array]:
    """The inverse of `pack_even`: weight and mask."""
    headers, index, values = streams[0].reshape(-1, 5).astype(np.int64), streams[1], streams[2]
    rows, cols = shape
    padded = -(-rows // 4) * 4
    run, _ = ragged(headers[:, 0])  # runs are [K-block, group]
    k_block = run // max(padded // 4, 1)
    last = np.minimum(block, cols - k_block * block) - 1
    step, lane = np.nonzero(index.reshape(-1, 4) < last[:, None])
    column = index.reshape(-1, 4)[step, lane] + k_block[step] * block
    place = headers[run[step], 1 + lane]
    where = place - place // (RUN + 1), column
    return scattered(where, values.reshape(-1, 4)[step, lane], (padded, cols), rows)


def pack_blocks(weight: Array, mask: Array, block: int, bits: int, unit: int) -> Streams:
    """Blocks of ``unit`` rows by one column; the mask is made of whole blocks."""
    kept = np.asarray(groups_of(mask, unit).any(axis=1))  # [G, K]
    by_column = groups_of(weight, unit).transpose(0, 2, 1)  # [G, K, unit]
    parts = spans(weight.shape[1], block)
    integer = np.dtype(f"u{bits // 8}")
    counts = np.concatenate([np.count_nonzero(kept[:, start:end], axis=1) for start, end in parts])
    index = np.concatenate([np.nonzero(kept[:, start:end])[1] for start, end in parts])
    values = np.concatenate([by_column[:, start:end][kept[:, start:end]].reshape(-1) for start, end in parts])
    return counts.astype(integer), index.astype(integer), values


def unpack_blocks(streams: Streams, shape: tuple[int, int], block: int, unit: int) -> tuple[Array, Array]:
    """The inverse of `pack_blocks`: weight and mask."""
    counts, index, values = streams
    rows, cols = shape
    groups = -(-rows // unit)
    run, _ = ragged(counts)  # runs are [K-block, group]
    column = index.astype(np.int64) + run // max(groups, 1) * block
    row = (run % max(groups, 1) * unit)[:, None] + np.arange(unit)
    where = row.reshape(-1), np.repeat(column, unit)
    return scattered(where, values, (groups * unit, cols), rows)


def scattered(where: tuple[Array, Array], values: Array, shape: tuple[int, int], rows: int) -> tuple[Array, Array]:
    """The first ``rows`` of weight and mask of ``shape``, with these values in these places."""
    weight, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
    weight[where], mask[where] = values, True
    return weight[:rows], mask[:rows]
