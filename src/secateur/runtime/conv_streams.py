"""Packing of convolution weights: a masked weight to the streams that `csrc/conv` reads, and back. NumPy only."""

from __future__ import annotations

import numpy as np

from secateur.runtime.columns import Array, Streams, joined, ragged
from secateur.runtime.conv_cuts import Cut, Planes, Window
from secateur.runtime.conv_even import HEADER, even_places, pack_even

__all__ = ["pack_conv", "unpack_conv"]

_WIDEST = 65536


def pack_conv(weight: Array, mask: Array, cut: Cut, x: Planes, y: Planes, window: Window) -> Streams:
    """Counts, offsets and values, chunk by chunk, in a chunk block by block.

    Args:
        weight: float32 ``[M, C / groups, kh, kw]``.
        mask: bool, alike; of layout ``blocks`` with a unit above 1, removed weights of a kept block are packed as 0.
        cut: how it is cut.
        x: geometry of the input.
        y: geometry of the output.
        window: the kernel.

    Returns:
        uint16 counts, uint16 offsets, float32 values.

    Raises:
        ValueError: the block has more channels than offsets of 16 bits can reach.
    """
    channel, taps, _ = cut.offsets(x, y, window)
    reach = (min(cut.block, weight.shape[1]) - 1) * channel + int(taps.max())
    if reach >= _WIDEST:
        fitting = (_WIDEST - 1 - int(taps.max())) // channel + 1
        raise ValueError(f"block={cut.block}: offsets of 16 bits reach {fitting} channels of this geometry")
    pack = _pack_rows if cut.layout == "rows" else _pack_blocks
    outputs = len(weight) // window.groups
    if outputs == 1 and cut.unit == 1 and cut.block >= weight.shape[1]:
        counts, offsets, values = _pack_blocks(weight[:, None], mask[:, None], cut, channel, taps, order=False)
        counts[0::2] = 0  # every group has one output channel
        return counts, offsets, values
    parts: list[Streams] = []
    for begin, end in _chunks(len(weight), outputs, cut.chunk):
        missing = -(end - begin) % cut.unit
        here, kept = weight[begin:end], mask[begin:end]
        if missing:
            zeros = np.zeros((missing, *weight.shape[1:]), np.float32)
            here, kept = np.concatenate([here, zeros]), np.concatenate([kept, zeros > 0])
        if cut.layout == "even":
            parts.append(pack_even(here, kept, cut.block, channel, taps))
            continue
        grouped = (-1, cut.unit, *weight.shape[1:])
        parts.append(pack(here.reshape(grouped), kept.reshape(grouped), cut, channel, taps))
    return joined(parts)


def _chunks(rows: int, outputs: int, chunk: int) -> list[tuple[int, int]]:
    """First and last output channel of every chunk of every group."""
    starts = [group + at for group in range(0, rows, outputs) for at in range(0, outputs, chunk)]
    return [(start, min(start + chunk, (start // outputs + 1) * outputs)) for start in starts]


def _pack_blocks(weight: Array, mask: Array, cut: Cut, channel: int, taps: Array, order: bool = True) -> Streams:
    kept = np.asarray(mask[:, 0] if cut.unit == 1 else mask.any(axis=1))  # [G, C, kh, kw]
    item = np.flatnonzero(kept)
    size = taps.size
    group, inside = np.divmod(item, kept[0].size)
    place, tap = np.divmod(inside, size)
    block, local = np.divmod(place, cut.block)
    offset = (local * channel + taps.reshape(-1)[tap]).astype(np.uint16)
    if cut.unit == 1:
        values = weight.reshape(-1)[item, None]
    else:
        flat = np.where(mask, weight, np.float32(0)).reshape(len(weight), cut.unit, -1)
        values = flat[group, :, inside]
    blocks = -(-kept.shape[1] // cut.block)
    # Weights stand by group and block; wanted are blocks, in a block groups by rising count.
    counts = np.bincount(group * blocks + block, minlength=len(kept) * blocks).reshape(len(kept), blocks)
    keys = counts.T if order else np.zeros_like(counts.T)
    named = np.argsort(keys, axis=1, kind="stable")  # [blocks, G]
    sizes = np.take_along_axis(counts.T, named, 1)
    starts = (np.cumsum(counts) - counts.reshape(-1)).reshape(counts.shape).T
    run, rank = ragged(sizes)
    source = np.take_along_axis(starts, named, 1).reshape(-1)[run] + rank
    header = np.stack([named, sizes], axis=-1).astype(np.uint16)
    return header.reshape(-1), offset[source], np.ascontiguousarray(values[source], np.float32).reshape(-1)


def _pack_rows(weight: Array, mask: Array, cut: Cut, channel: int, taps: Array) -> Streams:
    bits = np.arange(cut.unit, dtype=np.uint8)
    pattern = (mask.view(np.uint8) << bits[:, None, None, None]).sum(axis=1, dtype=np.uint8)  # [G, C, kh, kw]
    group, place, row, column = np.nonzero(pattern)
    found = pattern[group, place, row, column]
    block, local = np.divmod(place, cut.block)
    blocks, per = -(-pattern.shape[1] // cut.block), 1 << cut.unit
    counts = np.bincount((block * len(pattern) + group) * per + found, minlength=blocks * len(pattern) * per)
    counts = counts.reshape(blocks, len(pattern), per)
    order = np.argsort(counts[:, :, 1:].sum(axis=2), axis=1, kind="stable")  # groups of a block
    rank = np.argsort(order, axis=1, kind="stable")
    sorting = np.argsort(((block * len(pattern) + rank[block, group]) * per + found).astype(np.int64), kind="stable")
    counts = np.take_along_axis(counts, order[:, :, None], 1)
    counts[:, :, 0] = order
    offset = (local * channel + taps[row, column]).astype(np.uint16)[sorting]
    kept = (found[sorting, None] >> bits & 1).view(bool)
    values = weight.transpose(0, 2, 3, 4, 1)[group, place, row, column][sorting][kept]
    return counts.astype(np.uint16).reshape(-1), offset, np.ascontiguousarray(values, np.float32)


def unpack_conv(
    streams: Streams, shape: tuple[int, int, int, int], cut: Cut, x: Planes, y: Planes, window: Window
) -> tuple[Array, Array]:
    """The inverse of `pack_conv`: weight ``[M, C, kh, kw]`` and mask; the mask of ``blocks`` has whole blocks."""
    counts, offsets, values = streams
    channel, taps, _ = cut.offsets(x, y, window)
    block = min(cut.block, shape[1])
    where = np.full((block - 1) * channel + int(taps.max()) + 1, -1)  # offset -> (channel, tap) of a block
    places = np.arange(block)[:, None] * channel + taps.reshape(-1)
    where[places.reshape(-1)] = np.arange(places.size)
    even, bits = cut.layout == "even", np.arange(cut.unit)
    header = HEADER if even else 1 << cut.unit if cut.layout == "rows" else 2
    # Rows that the last group of a chunk lacks go to one place behind all others.
    weight, mask = (
        np.zeros((shape[0] + 1, shape[1] * taps.size), np.float32),
        np.zeros((shape[0] + 1, shape[1] * taps.size), bool),
    )
    for begin, end in _chunks(shape[0], shape[0] // window.groups, cut.chunk):
        groups = -(-(end - begin) // cut.unit)
        for first in range(0, shape[1], block):
            head, counts = counts[: groups * header].reshape(groups, header).astype(np.int64), counts[groups * header :]
            run, place = even_places(head) if even else ragged(head[:, 1:])
            here, offsets = where[offsets[: len(run)]] + first * taps.size, offsets[len(run) :]
            if even:
                target = np.where(begin + run < end, begin + run, shape[0]), here[place]
                weight[target], mask[target], values = values[place], True, values[len(run) :]
                continue
            group, pattern = np.divmod(run, header - 1)
            present = pattern[:, None] + 1 >> bits & 1 if cut.layout == "rows" else np.ones((len(run), cut.unit), int)
            item, row = np.nonzero(present)
            target = begin + head[group[item], 0] * cut.unit + row
            target = np.where(target < end, target, shape[0]), here[item]
            weight[target], mask[target], values = values[: len(item)], True, values[len(item) :]
    return weight[: shape[0]].reshape(shape), mask[: shape[0]].reshape(shape)
