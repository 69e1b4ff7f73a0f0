"""Ways to run a convolution that are worth timing, and how each is cut for its geometry."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from secateur.runtime.conv_cuts import Cut, Planes, Window

__all__ = ["CONV_LAYOUTS", "conv_candidates", "cut_of"]

_CACHE = 28 * 1024  # bytes of a block's pixels: the first cache, less what streams through it
_FAR = 56 * 1024  # where every pixel is read once per weight, the second cache is as good
_REACH = 65535  # steps that an offset of 16 bits can take


@dataclass(frozen=True, slots=True)
class ConvLayout:
    """One row of the table: kernel, channels of a group, whether pixels are read where they are, whether zeros stay."""

    kernel: str
    unit: int
    direct: bool
    dense: bool = False


CONV_LAYOUTS: dict[str, ConvLayout] = {
    "direct": ConvLayout("blocks", 1, True),
    "direct2": ConvLayout("rows", 2, True),
    "direct4": ConvLayout("rows", 4, True),
    "copied": ConvLayout("blocks", 1, False),
    "copied2": ConvLayout("rows", 2, False),
    "copied4": ConvLayout("rows", 4, False),
    "dense": ConvLayout("blocks", 4, False, dense=True),
    "dense-direct": ConvLayout("blocks", 4, True, dense=True),
    "depthwise": ConvLayout("blocks", 1, False, dense=True),
    "depthwise-direct": ConvLayout("blocks", 1, True, dense=True),
}
"""Name -> how a convolution runs. Which one is fastest depends on geometry, sparsity and machine: measure."""


def conv_candidates(weight: Tensor, x: Planes, y: Planes, window: Window) -> tuple[str, ...]:
    """Names of ``CONV_LAYOUTS`` for a weight ``[M, C / groups, kh, kw]``."""
    density = float((weight != 0).float().mean()) if weight.numel() else 0.0
    ways = ("direct", "copied") if _can_be_direct(x, y, window) else ("copied",)
    if weight.shape[1] == 1 and window.groups > 1:
        return tuple(f"depthwise-{way}" if way == "direct" else "depthwise" for way in ways)
    found = [way + group for way in ways for group in ("", "4" if density < 0.4 else "2")]
    if 0.12 < density < 0.5:
        found += [way + "2" for way in ways]
    if density > 0.3:
        found += ["dense-direct" if way == "direct" else "dense" for way in ways]
    return tuple(found) if density < 0.7 else tuple(name for name in found if name.startswith("dense"))


def cut_of(name: str, x: Planes, y: Planes, window: Window) -> Cut:
    """The cut of a layout for one geometry: tiles that fill the registers, blocks of channels that fill the cache."""
    layout = CONV_LAYOUTS[name]
    inputs, outputs = x.channels // window.groups, y.channels // window.groups
    taps = window.height * window.width
    if layout.direct:
        lanes, tile = 16, {1: 6}.get(taps, 12) if layout.unit == 1 else 4
        tile = min(tile, -(-y.height * y.row // lanes))
        floats = tile * lanes + (window.height - 1) * x.row + window.width
        steps = x.stride if taps > 1 else x.stride // 16
    else:
        lanes = 8 if 0 < y.width % 16 <= 8 else 16
        row = -(-y.width // lanes) * lanes
        most = (14 if layout.unit == 1 else 8) * lanes
        tile = max(1, min(y.height, most // row))
        rows = tile * window.step + window.height - 1
        floats = window.width * rows * row
        steps = floats // 8
    cache = _FAR if taps == 1 else _CACHE
    block = max(1, min(inputs, cache // (4 * floats), _REACH // max(steps, 1) - 1))
    block = -(-inputs // -(-inputs // block))
    chunk = -(-min(outputs, 256) // layout.unit) * layout.unit
    return Cut(layout.kernel, layout.unit, layout.direct, lanes, tile, block, chunk)


def _can_be_direct(x: Planes, y: Planes, window: Window) -> bool:
    return window.step == 1 and x.row == y.row
