"""A convolution's sparse weight, packed for one geometry and one way of cutting it."""

from __future__ import annotations

import functools
from typing import Any, final

import torch
from torch import Tensor

from secateur.native.loading import core
from secateur.runtime.conv_cuts import Cut, Planes, Window
from secateur.runtime.conv_streams import pack_conv
from secateur.runtime.roofs import cache_sizes

__all__ = ["PackedConv", "native_planes"]


@final
class PackedConv:
    """The streams of a convolution. It holds copies: later changes of the dense weight do not reach it.

    Args:
        weight: float32 ``[M, C / groups, kh, kw]`` on the CPU; what is 0 is removed.
        cut: how it is cut.
        x: geometry of the input.
        y: geometry of the output.
        window: the kernel.
        dense: keep the zeros too.
    """

    __slots__ = ("_streams", "cut", "window", "x", "y")

    def __init__(self, weight: Tensor, cut: Cut, x: Planes, y: Planes, window: Window, dense: bool = False) -> None:
        mask = torch.ones_like(weight, dtype=torch.bool) if dense else weight != 0
        arrays = pack_conv(weight.detach().contiguous().numpy(), mask.numpy(), cut, x, y, window)
        # In torch's own memory, which is aligned; torch reads and writes signed integers everywhere.
        self._streams = tuple(
            torch.from_numpy(array.view("i2") if array.dtype.kind == "u" else array).clone() for array in arrays
        )
        self.cut, self.x, self.y, self.window = cut, x, y, window

    @classmethod
    def of_streams(cls, streams: dict[str, Tensor], cut: Cut, x: Planes, y: Planes, window: Window) -> PackedConv:
        """What `tensors` gave, for the same geometry and cut; the core checks the rest when a step is made.

        Raises:
            ValueError: streams are missing, or of another dtype.
        """
        wanted = {"counts": torch.int16, "offsets": torch.int16, "values": torch.float32}
        found = {name: (stream.dtype, stream.ndim) for name, stream in streams.items()}
        if found != {name: (dtype, 1) for name, dtype in wanted.items()}:
            raise ValueError(f"streams of a convolution: expected {wanted} with one axis each, got {found}")
        made = cls.__new__(cls)
        made._streams = tuple(streams[name].clone() for name in wanted)
        made.cut, made.x, made.y, made.window = cut, x, y, window
        return made

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the streams, for a file."""
        return {
            name: stream.clone() for name, stream in zip(("counts", "offsets", "values"), self._streams, strict=True)
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all streams."""
        return sum(stream.nbytes for stream in self._streams)

    def step(self, table: Any, source: Any, target: Any, residual: Any, bias: Tensor | None, activation: int) -> Any:
        """The step of the core.

        Args:
            table: kernels of one instruction set.
            source: where the input lies.
            target: where the output goes.
            residual: where a value of the output's geometry lies, or None.
            bias: float32 ``[M]``; copied.
            activation: number of it in the core.
        """
        counts, offsets, values = self._streams
        window, cut = self.window, self.cut
        return core.SparseConv(
            table,
            self._streams,
            native_planes(self.x),
            native_planes(self.y),
            core.Window(window.height, window.width, window.step, window.padding, window.dilation, window.groups),
            core.ConvCut(cut.layout, cut.unit, cut.direct, cut.lanes, cut.tile, cut.block, cut.chunk),
            counts.data_ptr(),
            counts.numel(),
            offsets.data_ptr(),
            offsets.numel(),
            values.data_ptr(),
            values.numel(),
            source,
            target,
            residual,
            0 if bias is None else bias.data_ptr(),
            activation,
            residual is None and self.y.lanes > 1 and 4 * self.y.floats > _largest(),
        )


@functools.cache
def _largest() -> int:
    """Bytes from which on a value had better leave the caches when it is written: half the last one."""
    sizes = cache_sizes()
    return sizes[max(sizes)] // 2 if sizes else 1 << 62


def native_planes(planes: Planes) -> Any:
    """The core's own object."""
    return core.Planes(planes.channels, planes.height, planes.width, planes.pad, planes.lanes)
