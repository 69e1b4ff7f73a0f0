"""How a convolution is cut, and where its weights find their pixels: the same arithmetic as `csrc/conv`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.runtime.columns import Array

__all__ = ["LAYOUTS", "Cut", "Planes", "Window"]

LAYOUTS = {"blocks": (1, 2, 4), "rows": (2, 4), "even": (4,)}
"""Layout -> units: how many output channels a group has. ``blocks`` of unit 1 are single weights; the channels of a
group of ``even`` are not neighbours, but keep like numbers of weights."""

_VECTOR = 16
_LANES = (8, 16)


@dataclass(frozen=True, slots=True)
class Planes:
    """Where the pixels of a value lie.

    Pixel (h, w) of channel c is at ``c * stride + first + h * row + w * lanes`` floats; a row is ``width`` pixels, then
    ``pad`` zeros. A pixel is one float, or 16 of as many images.

    Attributes:
        channels: how many planes there are.
        height: rows of pixels.
        width: pixels of a row.
        pad: the largest padding among the readers of the value.
        lanes: images side by side, 1 or 16.
    """

    channels: int
    height: int
    width: int
    pad: int = 0
    lanes: int = 1

    @property
    def row(self) -> int:
        """Floats from one row to the next."""
        return (self.width + self.pad) * self.lanes

    @property
    def margin(self) -> int:
        """Zeros that a window may read before the first pixel and behind the last row."""
        return self.pad * self.row + self.pad * self.lanes

    @property
    def first(self) -> int:
        """Floats before the first pixel."""
        return _rounded(self.margin, _VECTOR)

    @property
    def stride(self) -> int:
        """Floats from one plane to the next: an odd number of cache lines."""
        lines = -(-(self.first + self.height * self.row + max(self.margin, _VECTOR)) // _VECTOR)
        return (lines | 1) * _VECTOR

    @property
    def floats(self) -> int:
        """Floats of all planes."""
        return self.channels * self.stride


@dataclass(frozen=True, slots=True)
class Window:
    """The kernel of a convolution: its height and width, its step, padding and dilation, the same both ways."""

    height: int
    width: int
    step: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    def output(self, channels: int, x: Planes, pad: int = 0) -> Planes:
        """The geometry of what comes out, with so many channels."""
        height, width = (
            self._length(kernel, size) for kernel, size in ((self.height, x.height), (self.width, x.width))
        )
        return Planes(channels, height, width, pad, x.lanes)

    def _length(self, kernel: int, size: int) -> int:
        length = (size + 2 * self.padding - self.dilation * (kernel - 1) - 1) // self.step + 1
        if length < 1:
            raise ValueError(f"a window of {kernel} with dilation {self.dilation} does not fit {size} pixels")
        return length


@dataclass(frozen=True, slots=True)
class Cut:
    """How a convolution is cut.

    Attributes:
        layout: a key of ``LAYOUTS``.
        unit: output channels of a group.
        direct: pixels are read where they are; needs 16 images side by side, or step 1 and equal rows of input and
            output. Else what a tile needs is first copied to where all taps are aligned; of 16 images side by side,
            for a kernel of 1 x 1 alone, to where the pixels of all channels are neighbours.
        lanes: 8 or 16 floats in a vector.
        tile: rows of output pixels; where direct or side by side, vectors.
        block: input channels whose pixels stay in the first cache.
        chunk: output channels, a multiple of the unit.
    """

    layout: str
    unit: int
    direct: bool
    lanes: int
    tile: int
    block: int
    chunk: int

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS or self.unit not in LAYOUTS[self.layout]:
            raise ValueError(f"layout={self.layout!r}, unit={self.unit}: allowed are {LAYOUTS}")
        if self.lanes not in _LANES or not 1 <= self.tile <= 64:
            raise ValueError(f"lanes={self.lanes}, tile={self.tile}: expected 8 or 16 lanes and a tile of 1 to 64")
        if self.block < 1 or not 1 <= self.chunk <= 32768 or self.chunk % self.unit:
            raise ValueError(
                f"block={self.block}, chunk={self.chunk}: expected a chunk of 1 to 32768, a multiple of the unit"
            )

    def offsets(self, x: Planes, y: Planes, window: Window) -> tuple[int, Array, int]:
        """Where taps are, in steps of 2^shift floats: of the first channel ``[kh, kw]``, and from channel to channel.

        Returns:
            Step from channel to channel, offsets of the taps, shift.
        """
        rows = np.arange(window.height)[:, None] * window.dilation
        columns = np.arange(window.width)[None, :]
        if self.direct:
            shift = 4 if x.lanes > 1 or window.height * window.width == 1 else 0
            taps = rows * x.row + columns * (window.dilation * x.lanes)
            return x.stride >> shift, taps >> shift, shift
        if x.lanes > 1:
            return self.tile, np.zeros((window.height, window.width), np.int64), 4
        row = _rounded(y.width, self.lanes)
        tile = min(self.tile, y.height)
        phase, place = rows[:, 0] % window.step, rows[:, 0] // window.step
        sizes = [tile + int(place[phase == f].max()) if (phase == f).any() else 0 for f in range(window.step)]
        starts = np.cumsum([0, *sizes[:-1]])
        taps = (starts[phase] + place)[:, None] * row + columns * (sum(sizes) * row)
        return window.width * sum(sizes) * row >> 3, taps >> 3, 3


def _rounded(n: int, unit: int) -> int:
    return -(-n // unit) * unit
