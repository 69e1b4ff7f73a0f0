"""Sparse convolutions in the core against loops in float64, in an arena of NaN."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from secateur.native.loading import core
from secateur.runtime import ACTIVATIONS
from secateur.runtime.columns import Array
from secateur.runtime.conv_cuts import LAYOUTS, Cut, Planes, Window
from secateur.runtime.conv_streams import pack_conv
from secateur.runtime.convolution import native_planes
from tests.native.oracle import instruction_sets, needs_core

pytestmark = needs_core

KERNELS = [(layout, unit) for layout, units in LAYOUTS.items() for unit in units]
SINGLE = [("blocks", 1), ("rows", 2), ("rows", 4), ("even", 4)]
"""What keeps single weights."""
PLAIN = Cut("blocks", 1, False, 16, 4, 3, 8)


@dataclass
class Layer:
    """A convolution with everything that it reads."""

    x: Planes
    y: Planes
    window: Window
    pixels: Array
    weight: Array
    mask: Array
    bias: Array
    residual: Array | None
    activation: str | None


def layer(
    channels: tuple[int, int],
    size: tuple[int, int],
    window: Window,
    density: float = 0.4,
    pads: tuple[int, int] | None = None,
    residual: bool = False,
    activation: str | None = None,
) -> Layer:
    """Random numbers; ``channels`` are those of the input and the output."""
    generator = np.random.default_rng(channels[0] * 1000 + size[0] * 10 + window.height)
    before, after = (window.padding, window.padding) if pads is None else pads
    x = Planes(channels[0], *size, before)
    y = window.output(channels[1], x, after)
    shape = (channels[1], channels[0] // window.groups, window.height, window.width)
    pixels, weight, bias, other = (
        generator.standard_normal(dims).astype(np.float32)
        for dims in ((channels[0], *size), shape, channels[1], (channels[1], y.height, y.width))
    )
    mask = generator.random(shape) < density
    return Layer(x, y, window, pixels, weight, mask, bias, other if residual else None, activation)


def expected(work: Layer) -> Array:
    """Every product in float64; removed weights take no part, zeros of the padding do."""
    window, (_, height, width) = work.window, work.pixels.shape
    pad, groups = work.window.padding, window.groups
    padded = np.zeros((len(work.pixels), height + 2 * pad, width + 2 * pad))
    padded[:, pad : pad + height, pad : pad + width] = work.pixels
    y = np.repeat(work.bias.astype(float), work.y.height * work.y.width).reshape(-1, work.y.height, work.y.width)
    inputs, outputs = len(padded) // groups, len(y) // groups
    with np.errstate(invalid="ignore", over="ignore"):
        for m, c, h, w in zip(*np.nonzero(work.mask), strict=True):
            top, left = h * window.dilation, w * window.dilation
            taken = padded[m // outputs * inputs + c, top:, left:][:: window.step, :: window.step]
            y[m] += float(work.weight[m, c, h, w]) * taken[: work.y.height, : work.y.width]
        y = y if work.residual is None else y + work.residual
    return ACTIVATIONS[work.activation][1](torch.from_numpy(y)).numpy()


def address(array: Array) -> int:
    return array.ctypes.data


def place(where: str, at: int) -> Any:
    return core.Place(getattr(core.Where, where), at)


def conv_step(
    isa: str,
    work: Layer,
    cut: Cut,
    at: tuple[int, int, int],
    streams: tuple[Array, ...] | None = None,
    past: bool = False,
) -> Any:
    """The step; ``at``: of input, output and residual in the arena; ``past``: results go past the caches."""
    found = streams or pack_conv(work.weight, work.mask, cut, work.x, work.y, work.window)
    counts, offsets, values = arrays = tuple(np.ascontiguousarray(stream) for stream in found)
    window = work.window
    return core.SparseConv(
        core.table(isa), arrays, native_planes(work.x), native_planes(work.y),
        core.Window(window.height, window.width, window.step, window.padding, window.dilation, window.groups),
        core.ConvCut(cut.layout, cut.unit, cut.direct, cut.lanes, cut.tile, cut.block, cut.chunk),
        address(counts), counts.size, address(offsets), offsets.size, address(values), values.size,
        place("arena", at[0]), place("arena", at[1]), None if work.residual is None else place("arena", at[2]),
        address(work.bias), ACTIVATIONS[work.activation][0], past,
    )  # fmt: skip


def probe(isa: str, y: Planes, at: tuple[int, int]) -> tuple[Any, Planes]:
    """Sums over all windows as wide as the padding allows: NaN or anything else beside the pixels shows."""
    window = Window(2 * y.pad + 1, 2 * y.pad + 1, 1, y.pad, 1, y.channels)
    z = window.output(y.channels, y)
    ones = np.ones((y.channels, 1, window.height, window.width), np.float32)
    zeros = np.zeros(y.channels, np.float32)
    work = Layer(y, z, window, zeros, ones, ones > 0, zeros, None, None)
    return conv_step(isa, work, Cut("blocks", 1, False, 16, 3, 1, 1), (*at, 0)), z


def window_sums(y: Array, pad: int) -> Array:
    padded = np.pad(y, ((0, 0), (pad, pad), (pad, pad)))
    return np.lib.stride_tricks.sliding_window_view(padded, (2 * pad + 1, 2 * pad + 1), axis=(1, 2)).sum(axis=(3, 4))


def run_program(steps: list[Any], floats: int, inputs: list[Array], outputs: list[Array]) -> None:
    program = core.Program(1, floats, [x.size for x in inputs], [y.size for y in outputs])
    for step in steps:
        program.add(step)
    program.poison()
    program.run([address(x) for x in inputs], [address(y) for y in outputs], 1)


def run(isa: str, work: Layer, cut: Cut) -> tuple[Array, Array]:
    """The result, and its sums over windows that reach into the padding."""
    at = np.cumsum([0, work.x.floats, work.y.floats, work.y.floats]).tolist()
    sums, z = probe(isa, work.y, (at[1], at[3]))
    inputs = [np.ascontiguousarray(work.pixels)]
    steps = [core.ToPlanes(core.table(isa), native_planes(work.x), place("input", 0), place("arena", 0))]
    if work.residual is not None:
        inputs.append(np.ascontiguousarray(work.residual))
        steps.append(core.ToPlanes(core.table(isa), native_planes(work.y), place("input", 1), place("arena", at[2])))
    steps += [conv_step(isa, work, cut, (0, at[1], at[2])), sums]
    steps.append(core.FromPlanes(core.table(isa), native_planes(work.y), place("arena", at[1]), place("output", 0)))
    steps.append(core.FromPlanes(core.table(isa), native_planes(z), place("arena", at[3]), place("output", 1)))
    outputs = [np.empty((work.y.channels, work.y.height, work.y.width), np.float32) for _ in range(2)]
    run_program(steps, at[3] + z.floats, inputs, outputs)
    return outputs[0], outputs[1]


def check(isa: str, work: Layer, cut: Cut) -> None:
    found, sums = run(isa, work, cut)
    wanted = expected(work)
    size = float(np.abs(wanted).max(initial=1.0))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6 * size)
    pad = work.y.pad
    np.testing.assert_allclose(sums, window_sums(wanted, pad), rtol=1e-4, atol=4e-6 * size * (2 * pad + 1) ** 2)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(("kernel", "unit"), KERNELS)
@pytest.mark.parametrize("direct", [True, False])
def test_ragged_sizes(isa: str, kernel: str, unit: int, direct: bool) -> None:
    """Rows, columns, padding, channels and activations take turns."""
    sizes = itertools.cycle([1, 3, 7, 8, 14, 15, 17, 28])
    activations = itertools.cycle(ACTIVATIONS)
    for i, (padding, kernel_size) in enumerate([(0, 1), (1, 3), (2, 5), (3, 7), (1, 1), (0, 2), (2, 3)]):
        size = (max(next(sizes), kernel_size - 2 * padding), max(next(sizes), kernel_size - 2 * padding))
        grows = 2 * padding - kernel_size + 1  # columns that the output has more; rows are equally long all the same
        before = max(padding, grows)
        pads = (before, before - grows)
        window = Window(kernel_size, kernel_size, 1, padding)
        work = layer((3 + i, 9 - i), size, window, 0.4, pads, i % 2 == 1, next(activations))
        work = replace(work, mask=whole_blocks(work.mask, unit) if kernel == "blocks" else work.mask)
        assert work.x.row == work.y.row
        check(isa, work, Cut(kernel, unit, direct, 8 + 8 * (i % 2), 1 + 3 * i, 2, unit * (1 + i % 2)))


def whole_blocks(mask: Array, unit: int) -> Array:
    """Groups of output channels keep or lose a weight together."""
    return np.repeat(mask[::unit], unit, axis=0)[: len(mask)]


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("step", [2, 3, 4])
@pytest.mark.parametrize(("size", "padding"), list(itertools.product([(7, 14), (15, 9), (28, 17)], [0, 1, 2])))
def test_steps(isa: str, step: int, size: tuple[int, int], padding: int) -> None:
    for kernel, pads in itertools.product((1, 3, 5), ((padding, 0), (padding + 1, 2))):
        work = layer((5, 6), size, Window(kernel, kernel, step, padding), pads=pads, activation="relu")
        check(isa, work, replace(PLAIN, tile=3, lanes=8 if kernel == 3 else 16))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    ("channels", "window"),
    [
        ((6, 6), Window(3, 3, 1, 1, 1, 6)),
        ((6, 12), Window(3, 3, 1, 1, 1, 6)),
        ((8, 10), Window(3, 3, 1, 1, 1, 2)),
        ((4, 5), Window(3, 3, 1, 2, 2)),
        ((4, 5), Window(1, 5, 1, 2, 1)),
    ],
)
def test_groups_and_dilation(isa: str, direct: bool, channels: tuple[int, int], window: Window) -> None:
    work = layer(channels, (9, 15), window, 0.7, residual=True, activation="relu")
    for kernel, unit in SINGLE:
        check(isa, work, Cut(kernel, unit, direct, 16, 3, 2, 4))


@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
@pytest.mark.parametrize(("kernel", "unit"), KERNELS)
def test_empty_and_full(density: float, kernel: str, unit: int) -> None:
    work = layer((7, 11), (9, 17), Window(3, 3, 1, 1), density, residual=True)
    work = replace(work, mask=whole_blocks(work.mask, unit) if kernel == "blocks" else work.mask)
    for isa, direct in itertools.product(instruction_sets(), (True, False)):
        check(isa, work, Cut(kernel, unit, direct, 16, 5, 4, 8))


def test_every_way_of_cutting_gives_the_same() -> None:
    work = layer((10, 12), (14, 28), Window(3, 3, 1, 1), 0.3, residual=True, activation="gelu")
    cuts = [
        Cut(kernel, unit, direct, lanes, tile, block, chunk)
        for kernel, unit in SINGLE
        for direct, lanes, tile in itertools.product((True, False), (8, 16), (1, 5, 14, 64))
        for block, chunk in ((1, 4), (3, 8), (10, 12))
    ]
    for isa, some in zip(itertools.cycle(instruction_sets()), cuts, strict=False):
        check(isa, work, some)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("direct", [True, False])
def test_nan_and_infinity_come_through_kept_weights_only(isa: str, direct: bool) -> None:
    work = layer((4, 6), (9, 15), Window(3, 3, 1, 1), 0.5)
    work.mask[:3, 1], work.mask[3:, 1] = False, True
    work.pixels[1, 4, 4], work.pixels[1, 0, 14], work.pixels[1, 8, 0] = np.nan, np.inf, -np.inf
    for kernel, unit in SINGLE:
        found, _ = run(isa, work, Cut(kernel, unit, direct, 16, 4, 3, 8))
        wanted = expected(work)
        assert np.isfinite(found[:3]).all()
        assert np.isnan(found[3:]).any()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", instruction_sets())
def test_denormal_numbers_count(isa: str) -> None:
    work = layer((3, 4), (5, 9), Window(3, 3, 1, 1), 0.5)
    work = replace(work, pixels=work.pixels * np.float32(1e-39), bias=work.bias * 0)
    found, _ = run(isa, work, PLAIN)
    wanted = expected(work)
    assert np.abs(wanted).max() < 1e-37
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-44)
    assert (found != 0).any()
