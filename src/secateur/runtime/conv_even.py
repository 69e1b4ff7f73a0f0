"""Convolution weights of which four output channels go in step: packing, and where each weight stands. NumPy only."""

from __future__ import annotations

import numpy as np

from secateur.runtime.columns import Array, Streams, joined, ragged, spans

__all__ = ["GROUP", "HEADER", "even_places", "pack_even"]

GROUP = 4
"""Output channels that go in step."""
HEADER = 1 + 2 * GROUP
"""Counts of a group: steps, then of each channel its number and how many weights it has beyond them."""


def pack_even(weight: Array, mask: Array, block: int, channel: int, taps: Array) -> Streams:
    """Block by block, in a block groups of channels with like counts.

    Args:
        weight: float32 ``[M, C, kh, kw]``; M is a multiple of ``GROUP``.
        mask: bool, alike.
        block: input channels.
        channel: step of the offsets from channel to channel.
        taps: offsets ``[kh, kw]`` of the taps of the first channel.

    Returns:
        uint16 counts, uint16 offsets, float32 values.
    """
    parts = [
        _pack_block(weight[:, begin:end].reshape(len(weight), -1), mask[:, begin:end], channel, taps)
        for begin, end in spans(mask.shape[1], block)
    ]
    return joined(parts)


def _pack_block(weight: Array, mask: Array, channel: int, taps: Array) -> Streams:
    kept = mask.reshape(len(mask), -1)
    counts = np.count_nonzero(kept, axis=1)
    order = np.argsort(counts, kind="stable")
    sizes = counts[order].reshape(-1, GROUP)
    beyond = sizes - sizes[:, :1]  # the first of a group has the fewest
    header = np.empty((len(sizes), HEADER), np.uint16)
    header[:, 0], header[:, 1::2], header[:, 2::2] = sizes[:, 0], order.reshape(-1, GROUP), beyond
    row, inside = np.nonzero(kept)
    place, tap = np.divmod(inside, taps.size)
    offset = (place * channel + taps.reshape(-1)[tap]).astype(np.uint16)
    _, position = even_places(header)  # of the weights, channel by channel in the order of the groups
    where = np.empty(len(row), np.int64)
    where[np.argsort(np.argsort(order)[row], kind="stable")] = position
    offsets, values = np.empty(len(row), np.uint16), np.empty(len(row), np.float32)
    offsets[where], values[where] = offset, weight[kept]
    return header.reshape(-1), offsets, values


def even_places(header: Array) -> tuple[Array, Array]:
    """Where the weights of a block stand in its stream, channel by channel in the order of the groups.

    Args:
        header: counts ``[groups, HEADER]``.

    Returns:
        For each weight the number of its channel, and its place.
    """
    steps, names, beyond = (
        header[:, at].astype(np.int64) for at in (slice(0, 1), slice(1, None, 2), slice(2, None, 2))
    )
    sizes = steps + beyond
    begin = np.cumsum(sizes.sum(axis=1)) - sizes.sum(axis=1)
    rest = begin[:, None] + GROUP * steps + np.cumsum(beyond, axis=1) - beyond
    item, rank = ragged(sizes.reshape(-1))
    group, lane = np.divmod(item, GROUP)
    together = rank < steps[group, 0]
    place = np.where(together, begin[group] + GROUP * rank + lane, rest[group, lane] + rank - steps[group, 0])
    return names.reshape(-1)[item], place
