"""A depthwise convolution's weight, for the kernel that makes one plane of one plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from secateur.native.loading import core
from secateur.runtime.conv_cuts import Planes, Window
from secateur.runtime.convolution import native_planes

__all__ = ["DepthwiseCut", "PackedDepthwise"]


@dataclass(frozen=True, slots=True)
class DepthwiseCut:
    """How a depthwise convolution is cut.

    Attributes:
        chunk: output channels of a piece.
    """

    layout: ClassVar[str] = "depthwise"
    chunk: int


@final
class PackedDepthwise:
    """A copy of the weight. What is 0 is removed; planes that lost nothing run faster.

    Args:
        weight: float32 ``[M, 1, kh, kw]`` on the CPU.
        cut: how it is cut.
        x: geometry of the input, of which every channel is a group.
        y: geometry of the output.
        window: the kernel.
    """

    __slots__ = ("_values", "cut", "window", "x", "y")

    def __init__(self, weight: Tensor, cut: DepthwiseCut, x: Planes, y: Planes, window: Window) -> None:
        self._values = weight.detach().float().reshape(-1).clone()
        self.cut, self.x, self.y, self.window = cut, x, y, window

    @classmethod
    def of_streams(
        cls, streams: dict[str, Tensor], cut: DepthwiseCut, x: Planes, y: Planes, window: Window
    ) -> PackedDepthwise:
        """What `tensors` gave, for the same geometry; the core checks the length when a step is made.

        Raises:
            ValueError: the stream is missing, or of another dtype.
        """
        found = {name: (stream.dtype, stream.ndim) for name, stream in streams.items()}
        if found != {"values": (torch.float32, 1)}:
            raise ValueError(f"streams of a depthwise convolution: expected float32 values with one axis, got {found}")
        return cls(streams["values"], cut, x, y, window)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the streams, for a file."""
        return {"values": self._values.clone()}

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self._values.nbytes

    def step(self, table: Any, source: Any, target: Any, residual: Any, bias: Tensor | None, activation: int) -> Any:
        """The step of the core; arguments as of `PackedConv.step`."""
        window = self.window
        return core.DepthwiseConv(
            table,
            native_planes(self.x),
            native_planes(self.y),
            core.Window(window.height, window.width, window.step, window.padding, window.dilation, window.groups),
            self.cut.chunk,
            self._values.data_ptr(),
            self._values.numel(),
            source,
            target,
            residual,
            0 if bias is None else bias.data_ptr(),
            activation,
        )
