"""Packing for one sample: lanes that take their next weights from a window of 64 columns.

There are 16 lanes of one or two rows, which share the window; in each step a lane takes its next weight, wherever that
lies in it.

A step costs the same however many of its 16 places hold a weight, so empty places are what this packing avoids: a lane
that is ahead of the others waits until the window reaches its next weight, and it reaches far.
"""

from __future__ import annotations

import numpy as np

from secateur.runtime.columns import Array, Streams, groups_of, joined, ragged, scattered, spans

__all__ = ["pack_ell", "sizes_of", "unpack_ell"]

_STEPS = 4  # of a record
_NOTHING = 63  # the place of a lane that takes no part in a step
_STRIDE = 8  # windows begin at multiples of it: half a cache line, so that at most one load in two crosses one


def sizes_of(counts: Array, rows: int) -> tuple[int, int]:
    """Bytes of the index and number of values of so many records, of lanes with so many rows."""
    records = int(counts.sum(dtype=np.int64))
    return (2 * rows + 16 * _STEPS) * records, 16 * _STEPS * records


def pack_ell(weight: Array, mask: Array, block: int, bits: int, rows: int) -> Streams:
    """Of lanes with so many rows each: slices of ``16 * rows``; lane i has rows i, 16 + i, ..."""
    parts = [_pack_block(weight[:, start:end], mask[:, start:end], rows) for start, end in spans(mask.shape[1], block)]
    return joined(parts)


def _pack_block(weight: Array, mask: Array, rows: int) -> Streams:
    slices = -(-len(mask) // (16 * rows))
    by_lane = [
        np.ascontiguousarray(
            groups_of(matrix, 16 * rows).reshape(slices, rows, 16, mask.shape[1]).transpose(0, 2, 3, 1)
        )
        for matrix in (weight, mask)
    ]
    piece, lane, column, row = np.nonzero(by_lane[1])  # every lane's weights from left to right
    kept = np.bincount(piece * 16 + lane, minlength=16 * slices).reshape(slices, 16)
    first, taken = _schedule(column, kept, _STEPS // rows)  # [span, slice], [span, slice, lane]
    spans_of = np.count_nonzero(taken.any(axis=2), axis=0)  # of each slice; a span is the steps that share a window
    records = -(-spans_of // rows)
    run, place = ragged(taken.transpose(1, 2, 0))  # in the order of the weights: [slice, lane, span]
    span = run % max(len(first), 1)
    start = np.cumsum(records) - records
    at = start[piece] + span // rows, span % rows * (_STEPS // rows) + place
    values = np.zeros((int(records.sum()), _STEPS, 16), np.float32)
    values[at[0], at[1], lane] = by_lane[0][by_lane[1]]
    index = np.zeros((len(values), 2 * rows + 16 * _STEPS), np.uint8)
    places = np.full((len(values), 16, _STEPS), _NOTHING, np.uint8)
    places[at[0], lane, at[1]] = column - first[span, piece] + 64 * row
    of_span, of_slice = np.nonzero(taken.any(axis=2))
    bases = np.zeros((len(values), rows), "<u2")
    bases[start[of_slice] + of_span // rows, of_span % rows] = first[of_span, of_slice]
    index[:, : 2 * rows] = bases.view(np.uint8)
    index[:, 2 * rows :] = places.reshape(len(places), 16 * _STEPS)
    return records.astype(np.uint32), index.reshape(-1), values.reshape(-1)


def _schedule(column: Array, kept: Array, steps: int) -> tuple[Array, Array]:
    """Where every window begins, and how many weights each lane takes in the steps that share it.

    ``column`` has the ``kept[slice, lane]`` weights of every lane one after the other.
    """
    wide = np.full((kept.size, int(kept.max(initial=0)) + steps), np.iinfo(np.int32).max, np.int32)
    lane, rank = ragged(kept)
    wide[lane, rank] = column
    ahead = np.arange(steps)
    done = np.zeros(kept.size, np.int64)
    first: list[Array] = []
    taken: list[Array] = []
    left = int(kept.sum())
    while left:
        waiting = np.take_along_axis(wide, done[:, None] + ahead, 1).reshape(*kept.shape, steps)
        begin = waiting[:, :, 0].min(axis=1) // _STRIDE * _STRIDE
        reached = np.count_nonzero(waiting - begin[:, None, None] < _NOTHING, axis=2)
        over = begin > column.max(initial=0)  # nothing is left of this slice
        begin[over] = 0
        reached[over] = 0
        done += reached.reshape(-1)
        left -= int(reached.sum())
        first.append(begin)
        taken.append(reached)
    shape = len(first), *kept.shape
    return np.array(first, np.int64).reshape(shape[:2]), np.array(taken, np.int64).reshape(shape)


def unpack_ell(streams: Streams, shape: tuple[int, int], block: int, rows: int) -> tuple[Array, Array]:
    """The inverse of `pack_ell`: weight and mask."""
    counts, index, values = streams
    outputs, cols = shape
    slices = -(-outputs // (16 * rows))
    records = index.reshape(-1, 2 * rows + 16 * _STEPS)
    run, _ = ragged(counts)  # runs are [K-block, slice]
    bases = np.ascontiguousarray(records[:, : 2 * rows]).view("<u2").astype(np.int64)
    bases = np.repeat(bases, _STEPS // rows, axis=1) + (run // max(slices, 1) * block)[:, None]  # [record, step]
    places = records[:, 2 * rows :].reshape(-1, 16, _STEPS).astype(np.int64)
    record, lane, step = np.nonzero(places % 64 != _NOTHING)
    place = places[record, lane, step]
    row = run[record] % max(slices, 1) * 16 * rows + place // 64 * 16 + lane
    where = row, bases[record, step] + place % 64
    return scattered(where, values.reshape(-1, _STEPS, 16)[record, step, lane], (16 * rows * slices, cols), outputs)
