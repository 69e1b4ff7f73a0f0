"""Convolutions of 16 images side by side against loops in float64, one image at a time, in an arena of NaN."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from secateur.native.loading import core
from secateur.runtime import ACTIVATIONS
from secateur.runtime.columns import Array
from secateur.runtime.conv_cuts import LAYOUTS, Cut, Planes, Window
from secateur.runtime.conv_streams import pack_conv, unpack_conv
from secateur.runtime.convolution import native_planes
from tests.native.oracle import instruction_sets, needs_core
from tests.runtime.test_conv_kernels import Layer, conv_step, expected, layer, place, whole_blocks, window_sums

pytestmark = needs_core

KERNELS = [(layout, unit) for layout, units in LAYOUTS.items() for unit in units]


def side_by_side(work: Layer) -> Layer:
    """The same layer, of 16 images."""
    return replace(work, x=replace(work.x, lanes=16), y=replace(work.y, lanes=16))


def cut_of(layout: str = "blocks", unit: int = 1, tile: int = 4, block: int = 3, chunk: int = 8) -> Cut:
    return Cut(layout, unit, True, 16, tile, block, chunk)


def images_of(work: Layer, count: int) -> list[Layer]:
    """The layer with as many images (and residuals) of its own kind."""
    generator = np.random.default_rng(count)
    found: list[Layer] = []
    for i in range(count):
        pixels = work.pixels if i == 0 else generator.standard_normal(work.pixels.shape).astype(np.float32)
        other = work.residual
        if other is not None and i > 0:
            other = generator.standard_normal(other.shape).astype(np.float32)
        found.append(replace(work, pixels=pixels, residual=other))
    return found


def probe(isa: str, y: Planes, at: tuple[int, int]) -> tuple[Any, Planes]:
    """Sums over all windows as wide as the padding allows: NaN or anything else beside the pixels shows."""
    window = Window(2 * y.pad + 1, 2 * y.pad + 1, 1, y.pad, 1, y.channels)
    z = window.output(y.channels, y)
    ones = np.ones((y.channels, 1, window.height, window.width), np.float32)
    zeros = np.zeros(y.channels, np.float32)
    work = Layer(y, z, window, zeros, ones, ones > 0, zeros, None, None)
    return conv_step(isa, work, cut_of(tile=3, block=1, chunk=1), (*at, 0)), z


def run(
    isa: str, images: list[Layer], cut: Cut, over: bool = False, past: bool = False, threads: int = 1
) -> tuple[Array, Array]:
    """Results of all images, and their sums over windows that reach into the padding.

    ``over``: laid over the residual; ``past``: written past the caches.
    """
    table, work = core.table(isa), images[0]
    at = np.cumsum([0, work.x.floats, work.y.floats, work.y.floats]).tolist()
    at[2] = at[1] if over else at[2]
    sums, z = probe(isa, work.y, (at[1], at[3]))
    inputs = [np.stack([image.pixels for image in images])]
    steps = [core.ToPlanes(table, native_planes(work.x), place("input", 0), place("arena", 0))]
    if work.residual is not None:
        inputs.append(np.stack([image.residual for image in images if image.residual is not None]))
        steps.append(core.ToPlanes(table, native_planes(work.y), place("input", 1), place("arena", at[2])))
    steps += [conv_step(isa, work, cut, (0, at[1], at[2]), past=past), sums]
    steps.append(core.FromPlanes(table, native_planes(work.y), place("arena", at[1]), place("output", 0)))
    steps.append(core.FromPlanes(table, native_planes(z), place("arena", at[3]), place("output", 1)))
    shape = (len(images), work.y.channels, work.y.height, work.y.width)
    outputs = [np.full(shape, np.nan, np.float32) for _ in range(2)]
    program = core.Program(16, at[3] + z.floats, [x[0].size for x in inputs], [y[0].size for y in outputs])
    for step in steps:
        program.add(step)
    if threads > 1:
        program.share(threads, "own", [1000.0] * len(steps))
    program.poison()
    program.run([x.ctypes.data for x in inputs], [y.ctypes.data for y in outputs], len(images))
    return outputs[0], outputs[1]


def check(isa: str, work: Layer, cut: Cut, count: int = 16, **how: Any) -> None:
    images = images_of(side_by_side(work), count)
    found, sums = run(isa, images, cut, **how)
    for image, result, around in zip(images, found, sums, strict=True):
        wanted = expected(image)
        size = float(np.abs(wanted).max(initial=1.0))
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=2e-6 * size)
        pad = work.y.pad
        atol = 4e-6 * size * (2 * pad + 1) ** 2
        np.testing.assert_allclose(around, window_sums(wanted, pad), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(("kernel", "unit"), KERNELS)
def test_ragged_sizes(isa: str, kernel: str, unit: int) -> None:
    """Rows, columns, padding, channels, numbers of images and activations take turns."""
    sizes = itertools.cycle([1, 3, 7, 8, 14, 15, 5])
    counts = itertools.cycle([1, 16, 3, 20])
    activations = itertools.cycle(ACTIVATIONS)
    for i, (padding, kernel_size) in enumerate([(0, 1), (1, 3), (2, 5), (3, 7), (1, 1), (0, 2), (2, 3)]):
        size = (max(next(sizes), kernel_size - 2 * padding), max(next(sizes), kernel_size - 2 * padding))
        pads = (padding + i % 2, (i + 1) % 3)
        window = Window(kernel_size, kernel_size, 1, padding)
        work = layer((3 + i, 9 - i), size, window, 0.4, pads, i % 2 == 1, next(activations))
        work = replace(work, mask=whole_blocks(work.mask, unit) if kernel == "blocks" else work.mask)
        check(isa, work, cut_of(kernel, unit, 1 + 4 * (i % 4), 2, unit * (1 + i % 2)), next(counts))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("step", [2, 3, 4])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_steps(isa: str, step: int, padding: int) -> None:
    tiles = itertools.cycle([1, 2, 5, 14, 64])
    for size, kernel, (layout, unit) in itertools.product([(7, 14), (15, 9)], (1, 3, 5), KERNELS):
        work = layer((5, 6), size, Window(kernel, kernel, step, padding), pads=(padding + kernel % 2, 2), residual=True)
        work = replace(work, mask=whole_blocks(work.mask, unit) if layout == "blocks" else work.mask)
        check(isa, work, cut_of(layout, unit, next(tiles) if step == 2 else 1), 5)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(
    ("channels", "window"),
    [
        ((6, 6), Window(3, 3, 1, 1, 1, 6)),
        ((6, 12), Window(3, 3, 2, 1, 1, 6)),
        ((8, 10), Window(3, 3, 1, 1, 1, 2)),
        ((4, 5), Window(3, 3, 1, 2, 2)),
        ((4, 5), Window(1, 5, 1, 2, 1)),
    ],
)
def test_groups_and_dilation(isa: str, channels: tuple[int, int], window: Window) -> None:
    work = layer(channels, (9, 15), window, 0.7, residual=True, activation="relu")
    for kernel, unit in (("blocks", 1), ("rows", 2), ("rows", 4)):
        check(isa, work, cut_of(kernel, unit, 7, 2, 4), 3)


@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
@pytest.mark.parametrize(("kernel", "unit"), KERNELS)
def test_empty_and_full(density: float, kernel: str, unit: int) -> None:
    work = layer((7, 11), (5, 9), Window(3, 3, 1, 1), density, residual=True)
    work = replace(work, mask=whole_blocks(work.mask, unit) if kernel == "blocks" else work.mask)
    for isa in instruction_sets():
        check(isa, work, cut_of(kernel, unit, 5, 4, 8), 2)


def test_every_way_of_cutting_gives_the_same() -> None:
    cuts = [
        cut_of(kernel, unit, tile, block, chunk)
        for kernel, unit in (("blocks", 1), ("rows", 2), ("rows", 4))
        for tile in (1, 5, 14, 64)
        for block, chunk in ((1, 4), (3, 8), (10, 12))
    ]
    for window, step in itertools.product((1, 3), (1, 2)):
        work = layer((10, 12), (6, 28), Window(window, window, step, window // 2), 0.3, activation="gelu")
        for isa, some in zip(itertools.cycle(instruction_sets()), cuts, strict=False):
            check(isa, work, some, 2)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("step", [1, 2])
def test_nan_and_infinity_stay_with_their_image_and_with_kept_weights(isa: str, step: int) -> None:
    work = side_by_side(layer((4, 6), (9, 15), Window(3, 3, step, 1), 0.5))
    work.mask[:3, 1], work.mask[3:, 1] = False, True
    for kernel, unit in (("blocks", 1), ("rows", 2), ("rows", 4)):
        images = images_of(work, 16)
        for i, value in ((2, np.nan), (7, np.inf), (15, -np.inf)):
            images[i].pixels[1, 4, 4], images[i].pixels[1, 0, 14] = value, value
        found, _ = run(isa, images, cut_of(kernel, unit, 4, 3, 8))
        assert np.isfinite(found[:, :3]).all()
        assert [i for i in range(16) if not np.isfinite(found[i]).all()] == [2, 7, 15]
        for image, result in zip(images, found, strict=True):
            np.testing.assert_allclose(result, expected(image), rtol=1e-5, atol=1e-5)


def test_streams_come_back() -> None:
    for step, (layout, unit) in itertools.product((1, 2), KERNELS):
        work = side_by_side(layer((10, 12), (9, 15), Window(3, 3, step, 1), 0.3))
        mask = whole_blocks(work.mask, unit) if layout == "blocks" else work.mask
        cut, geometry = cut_of(layout, unit), (work.x, work.y, work.window)
        streams = pack_conv(work.weight, mask, cut, *geometry)
        weight, found = unpack_conv(streams, (12, 10, 3, 3), cut, *geometry)
        np.testing.assert_array_equal(weight, np.where(mask, work.weight, 0))
        np.testing.assert_array_equal(found, mask)


def test_what_does_not_fit_is_refused() -> None:
    work = side_by_side(layer((5, 6), (9, 15), Window(3, 3, 1, 1)))
    streams = pack_conv(work.weight, work.mask, cut_of(), work.x, work.y, work.window)
    for wrong, cut, message in [
        (work, replace(cut_of(), direct=False), "1 x 1"),
        (work, replace(cut_of(), lanes=8), "16 lanes"),
        (replace(work, y=replace(work.y, lanes=1)), cut_of(), "side by side"),
        (replace(work, x=replace(work.x, pad=0)), cut_of(), "padding"),
        (replace(work, y=replace(work.y, width=14)), cut_of(), "sizes"),
    ]:
        with pytest.raises(ValueError, match=message):
            conv_step("portable", wrong, cut, (0, 0, 0), streams)
    far = side_by_side(layer((5, 6), (9, 15), Window(3, 3, 3, 1)))
    with pytest.raises(ValueError, match="one pixel"):
        conv_step("portable", far, cut_of(tile=2), (0, 0, 0))
    counts, offsets, values = (stream.copy() for stream in streams)
    offsets[0] = 65535
    with pytest.raises(ValueError, match="offset"):
        conv_step("portable", work, cut_of(), (0, 0, 0), (counts, offsets, values))
    with pytest.raises(ValueError, match="1 or 16"):
        core.Planes(3, 4, 4, 0, 8)
