"""Packing for one sample: slices of 16 rows, steps of 16 weights, each at its own place in a window of 32 columns.

A step costs the same however many of its 16 places hold a weight, so empty places are what this packing avoids: a row
that has nothing left in the first columns of a window takes its next weight from further right.
"""

from __future__ import annotations

import numpy as np

from secateur.runtime.columns import Array, Streams, groups_of, joined, ragged, scattered, spans

__all__ = ["RECORD", "pack_ell", "unpack_ell"]

RECORD = 18
"""Bytes of a step, beside its values."""

_NOTHING = 128  # the place of a row that takes no part in a step
_STRIDE = 8  # columns between windows; half a cache line, so that at most one load in two crosses one
_WINDOW = 32
_AHEAD = _WINDOW // _STRIDE


def pack_ell(weight: Array, mask: Array, block: int, bits: int) -> Streams:
    """Windows move on by 8 columns; a window has as many steps as its fullest row needs in its first 8 columns."""
    parts = [_pack_block(weight[:, start:end], mask[:, start:end]) for start, end in spans(weight.shape[1], block)]
    return joined(parts)


def _pack_block(weight: Array, mask: Array) -> Streams:
    taken, depth = _schedule(mask)  # [slice, row, window], [slice, window]
    first = np.cumsum(depth.reshape(-1)).reshape(depth.shape) - depth
    windows = depth.shape[1]
    places = np.full((int(depth.sum()), 16), _NOTHING, np.uint8)
    values = np.zeros(places.shape, np.float32)
    # Weights in row-major order are also in the order of the windows that take them.
    run, place = ragged(taken)
    window, lane = run % windows, run // windows % 16
    step = first[run // (16 * windows), window] + place
    places[step, lane] = np.nonzero(mask)[1] - window * _STRIDE
    values[step, lane] = weight[mask]
    records = np.empty((len(places), RECORD), np.uint8)
    base = np.repeat(np.tile(np.arange(windows) * _STRIDE, len(depth)), depth.reshape(-1))
    records[:, :2] = base.astype("<u2").view(np.uint8).reshape(-1, 2)
    records[:, 2:] = places
    return depth.sum(axis=1).astype(np.uint32), records.reshape(-1), values.reshape(-1)


def _schedule(mask: Array) -> tuple[Array, Array]:
    """How many weights each row gives to each window, and how many steps that takes."""
    rows, cols = mask.shape
    windows = max(-(-cols // _STRIDE), 1)
    wide = np.zeros((rows, windows * _STRIDE), bool)
    wide[:, :cols] = mask
    grouped = groups_of(np.count_nonzero(wide.reshape(rows, windows, _STRIDE), axis=2), 16)
    until = np.ascontiguousarray(np.cumsum(grouped, axis=2).transpose(2, 0, 1))  # [window, slice, row]
    taken = np.zeros(until.shape, np.int64)
    depth = np.zeros(until.shape[:2], np.int64)
    done = np.zeros(until.shape[1:], np.int64)
    for window in range(windows):
        depth[window] = np.maximum(until[window] - done, 0).max(axis=1)
        within_reach = until[min(window + _AHEAD, windows) - 1] - done
        taken[window] = np.minimum(depth[window][:, None], within_reach)
        done += taken[window]
    return taken.transpose(1, 2, 0), depth.T


def unpack_ell(streams: Streams, shape: tuple[int, int], block: int) -> tuple[Array, Array]:
    """The inverse of `pack_ell`: weight and mask."""
    counts, index, values = streams
    rows, cols = shape
    slices = -(-rows // 16)
    records = index.reshape(-1, RECORD)
    run, _ = ragged(counts)  # runs are [K-block, slice]
    base = np.ascontiguousarray(records[:, :2]).view("<u2").reshape(-1).astype(np.int64) + run // max(slices, 1) * block
    step, lane = np.nonzero(records[:, 2:] != _NOTHING)
    where = run[step] % max(slices, 1) * 16 + lane, base[step] + records[step, 2 + lane]
    return scattered(where, values.reshape(-1, 16)[step, lane], (16 * slices, cols), rows)
