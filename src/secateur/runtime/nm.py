"""Packing for one sample where every row keeps equally many of every 16 inputs, as n:m patterns along the inputs do.

No place of a step is empty then: a step has one weight of each of 16 rows, and an index is 4 bits.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from secateur.runtime.columns import RUN, Array, Streams, gathered_columns, joined, ragged, scattered, spans

__all__ = ["check_nm", "kept_of_window", "pack_nm", "sizes_of", "unpack_nm"]

_WINDOW = 16
_STEPS = 8  # whose indices a word of 32 bits has
_ALLOWED = (1, 2, 4, 8)


def kept_of_window(kept: Tensor) -> int | None:
    """How many of every 16 inputs each row of a mask ``[M, K]`` keeps; None where this differs, or no kernel has it."""
    rows, cols = kept.shape
    whole = cols - cols % _WINDOW
    if rows == 0 or whole == 0:
        return None
    counts = kept[:, :whole].reshape(rows, whole // _WINDOW, _WINDOW).sum(2)
    each = int(counts[0, 0])
    fits = each in _ALLOWED and bool((counts == each).all()) and bool((kept[:, whole:].sum(1) <= each).all())
    return each if fits else None


def check_nm(kept: Tensor) -> None:
    """Refuse a mask that has no such pattern."""
    if kept_of_window(kept) is None:
        raise ValueError(
            f"mask of shape {tuple(kept.shape)}: layout nm expects that every row keeps 1, 2, 4 or 8 of every 16 "
            "inputs (2:4 keeps 8, 1:8 keeps 2), one and the same number in all rows; try layout ell"
        )


def sizes_of(counts: Array) -> tuple[int, int]:
    """Words of the index and number of values."""
    steps = counts.reshape(-1, 2).astype(np.int64).prod(axis=1)
    return 16 * int((-(-steps // _STEPS)).sum()), 16 * int(steps.sum())


def pack_nm(weight: Array, mask: Array, block: int, bits: int) -> Streams:
    """Slices of 16 rows; the mask passes `check_nm`."""
    each = int(np.count_nonzero(mask[0, :_WINDOW]))
    parts = [_pack_block(weight[:, start:end], mask[:, start:end], each) for start, end in spans(mask.shape[1], block)]
    return joined(parts)


def _pack_block(weight: Array, mask: Array, each: int) -> Streams:
    features = _features(mask.shape[1])
    weight, mask = gathered_columns(weight, features), gathered_columns(mask, features)
    slices, windows, rest = -(-len(mask) // 16), -(-features // _WINDOW), features % _WINDOW
    row, column = np.nonzero(mask)
    window = column // _WINDOW
    _, rank = ragged(np.bincount(row * windows + window, minlength=len(mask) * windows))
    places = np.zeros((16 * slices, windows, each), np.uint32)
    if rest:
        places[:, -1] = rest  # a zero lies there, for rows with fewer in the last window
    values = np.zeros(places.shape, np.float32)
    places[row, window, rank] = column % _WINDOW
    values[row, window, rank] = weight[mask]
    steps = windows * each
    words = np.zeros((slices, -(-steps // _STEPS) * _STEPS, 16), np.uint32)
    words[:, :steps] = places.reshape(slices, 16, steps).transpose(0, 2, 1)
    shifted = words.reshape(slices, -1, _STEPS, 16) << (4 * np.arange(_STEPS, dtype=np.uint32))[:, None]
    counts = np.tile(np.array([each, windows], np.uint16), slices)
    index = np.bitwise_or.reduce(shifted, axis=2).reshape(-1)
    return counts, index, values.reshape(slices, 16, steps).transpose(0, 2, 1).reshape(-1)


def unpack_nm(streams: Streams, shape: tuple[int, int], block: int) -> tuple[Array, Array]:
    """The inverse of `pack_nm`: weight and mask."""
    counts, index, values = streams
    rows, cols = shape
    slices = -(-rows // 16)
    where: list[tuple[Array, Array]] = []
    found: list[Array] = []
    for (start, end), own in zip(spans(cols, block), counts.reshape(-1, slices, 2), strict=True):
        features = _features(end - start)
        each, windows = (int(number) for number in own[0])
        if (own != own[0]).any() or each not in _ALLOWED or windows != -(-features // _WINDOW):
            raise ValueError("the counts of layout nm do not fit")
        words, taken = sizes_of(own)
        steps = windows * each
        shifts = (4 * np.arange(_STEPS, dtype=np.uint32))[:, None]
        places = (index[:words].reshape(slices, -1, 1, 16) >> shifts & 15).reshape(slices, -1, 16)[:, :steps]
        column = places + np.repeat(np.arange(windows) * _WINDOW, each)[:, None]
        piece, step, lane = np.nonzero(column < features)
        of_weight = column[piece, step, lane].astype(np.int64)
        where.append((16 * piece + lane, start + of_weight + of_weight // RUN))
        found.append(values[:taken].reshape(slices, steps, 16)[piece, step, lane])
        index, values = index[words:], values[taken:]
    row, column = (np.concatenate(parts) for parts in zip(*where, strict=True))
    return scattered((row, column), np.concatenate(found), (16 * slices, cols), rows)


def _features(places: int) -> int:
    """Columns of a K-block without the zeros behind every run."""
    return places - -(-places // (RUN + 1))
