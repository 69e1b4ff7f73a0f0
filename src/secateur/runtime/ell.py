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
    slices, cols, steps = -(-len(mask) // (16 * rows)), mask.shape[1], _STEPS // rows  # steps share a window
    by_lane = [
        np.ascontiguousarray(groups_of(matrix, 16 * rows).reshape(slices, rows, 16, cols).transpose(0, 2, 3, 1))
        for matrix in (weight, mask)
    ]
    kept = np.count_nonzero(by_lane[1].reshape(slices, 16, cols * rows), axis=2)
    where = np.flatnonzero(by_lane[1])  # every lane's weights from left to right
    lane, _ = ragged(kept)
    column = where - lane * (cols * rows)
    row = column % rows
    column //= rows
    first, taken = _schedule(column, kept, steps)  # [span, slice], [slice, lane, span]: a span shares a window
    spans_of = np.count_nonzero(taken.any(axis=1), axis=1)
    records = -(-spans_of // rows)
    start = np.cumsum(records) - records
    run, place = ragged(taken)  # in the order of the weights
    span = run - lane * len(first)
    place += (start * _STEPS)[lane // 16] + span * steps  # the step, counted through all slices
    values = np.zeros((int(records.sum()) * _STEPS, 16), np.float32)
    values.reshape(-1)[place * 16 + lane % 16] = by_lane[0].reshape(-1)[where]
    places = np.full((int(records.sum()), 16, _STEPS), _NOTHING, np.uint8)
    slot = place // _STEPS * (16 * _STEPS) + lane % 16 * _STEPS + place % _STEPS
    places.reshape(-1)[slot] = column - first.reshape(-1)[span * slices + lane // 16] + 64 * row
    of_slice, of_span = np.nonzero(taken.any(axis=1))
    bases = np.zeros((len(places), rows), "<u2")
    bases[start[of_slice] + of_span // rows, of_span % rows] = first[of_span, of_slice]
    index = np.concatenate([bases.view(np.uint8), places.reshape(len(places), 16 * _STEPS)], axis=1)
    return records.astype(np.uint32), index.reshape(-1), values.reshape(-1)


def _schedule(column: Array, kept: Array, steps: int) -> tuple[Array, Array]:
    """Where every window begins, and how many weights each lane takes in the steps that share it.

    ``column`` has the ``kept[slice, lane]`` weights of every lane one after the other.
    """
    never = 1 << 30
    width = int(kept.max(initial=0)) + steps
    wide = np.full(kept.size * width, never, np.int32)
    lane, rank = ragged(kept)
    wide[lane * width + rank] = column
    last = int(column.max(initial=0)) // _STRIDE * _STRIDE
    at = np.arange(kept.size) * width  # the next weight of every lane
    first: list[Array] = []
    taken: list[Array] = []
    while True:
        waiting = wide[at]
        begin = np.minimum(waiting.reshape(kept.shape).min(axis=1) // _STRIDE * _STRIDE, last)
        end = np.repeat(begin + _NOTHING, 16)
        reached = (waiting < end).astype(np.int64)
        for step in range(1, steps):
            reached += wide[at + step] < end
        if not reached.any():
            break
        at += reached
        first.append(begin)
        taken.append(reached)
    spans_ = len(first)
    by_lane = np.array(taken, np.int64).reshape(spans_, *kept.shape).transpose(1, 2, 0)
    return np.array(first, np.int64).reshape(spans_, len(kept)), np.ascontiguousarray(by_lane)


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
