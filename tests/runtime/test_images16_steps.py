"""What stands around convolutions of 16 images side by side, against torch in float64, in an arena of NaN."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from secateur.native.loading import core
from secateur.runtime import ACTIVATIONS
from secateur.runtime.columns import Array
from secateur.runtime.conv_cuts import Planes, Window
from secateur.runtime.convolution import native_planes
from tests.native.oracle import instruction_sets, needs_core
from tests.runtime.test_conv_kernels import place, window_sums
from tests.runtime.test_images16_kernels import probe

pytestmark = needs_core

StepOf: TypeAlias = Callable[[list[Any], Any], Any]
"""Places of the inputs, place of the result -> the step."""

SIZES = [(1, 1), (3, 7), (8, 14), (15, 17)]
POOLS = [(2, 2, 0), (3, 2, 1), (3, 1, 1), (5, 3, 2), (1, 2, 0), (4, 4, 2)]


def images_of(count: int, channels: int, height: int, width: int, awkward: bool = False) -> Array:
    """Mostly below zero, so that a zero of the padding would win a maximum."""
    generator = np.random.default_rng(count + 10 * height + 100 * width)
    x = (generator.standard_normal((count, channels, height, width)) - 3).astype(np.float32)
    if awkward:
        x[-1, 0, height // 2, width // 2], x[0, -1, 0, 0] = np.nan, -np.inf
    return x


def run_program(steps: list[Any], floats: int, inputs: list[Array], outputs: list[Array]) -> None:
    program = core.Program(16, floats, [x[0].size for x in inputs], [y[0].size for y in outputs])
    for step in steps:
        program.add(step)
    program.poison()
    program.run([x.ctypes.data for x in inputs], [y.ctypes.data for y in outputs], len(inputs[0]))


def run(isa: str, inputs: list[tuple[Planes, Array]], y: Planes, step: StepOf) -> Array:
    """Convert, run ``step(places of the inputs, place of y)``, convert back; the padding of y is looked at, too."""
    table, count = core.table(isa), len(inputs[0][1])
    at = np.cumsum([0, *(planes.floats for planes, _ in inputs), y.floats]).tolist()
    places = [place("arena", begin) for begin in at]
    steps = [core.ToPlanes(table, native_planes(x), place("input", i), places[i]) for i, (x, _) in enumerate(inputs)]
    sums, z = probe(isa, y, (at[-2], at[-1]))
    steps += [step(places[:-2], places[-2]), sums]
    steps += [core.FromPlanes(table, native_planes(y), places[-2], place("output", 0))]
    steps += [core.FromPlanes(table, native_planes(z), places[-1], place("output", 1))]
    outputs = [np.full((count, y.channels, y.height, y.width), np.nan, np.float32) for _ in range(2)]
    run_program(steps, at[-1] + z.floats, [np.ascontiguousarray(x) for _, x in inputs], outputs)
    for found, around in zip(outputs[0].astype(float), outputs[1], strict=True):
        finite = np.isfinite(window_sums(found, y.pad))
        np.testing.assert_allclose(around[finite], window_sums(found, y.pad)[finite], rtol=1e-4, atol=1e-3)
    return outputs[0].astype(float)


def add_step(isa: str, values: tuple[Planes, Planes | None, Planes], activation: str | None) -> StepOf:
    """x, what is added if anything, y."""
    x, other, y = (None if planes is None else native_planes(planes) for planes in values)
    number = ACTIVATIONS[activation][0]
    return lambda at, to: core.AddPlanes(core.table(isa), x, other, y, at[0], at[1] if other else None, to, number)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("pad", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 16, 17])
def test_in_and_out(isa: str, pad: int, count: int) -> None:
    for size in SIZES:
        x, y = Planes(5, *size, pad, 16), Planes(5, *size, 3 - pad, 16)
        pixels = images_of(count, 5, *size, awkward=True)
        np.testing.assert_array_equal(run(isa, [(x, pixels)], y, add_step(isa, (x, None, y), None)), pixels)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("kind", ["maximum", "average", "average_pixels"])
@pytest.mark.parametrize("size", SIZES)
def test_pooling(isa: str, kind: str, size: tuple[int, int]) -> None:
    for (kernel, step, padding), more, awkward in itertools.product(POOLS, (0, 2), (False, True)):
        if min(size) + 2 * padding < kernel:
            continue
        x = Planes(3, *size, padding + more, 16)
        y = Window(kernel, kernel, step, padding).output(3, x, more)
        pixels = images_of(3, 3, *size, awkward)
        args = getattr(core.Pooling, kind), native_planes(x), native_planes(y), kernel, step, padding
        found = run(isa, [(x, pixels)], y, lambda at, to, a=args: core.Pool(core.table(isa), *a, at[0], to))
        image = torch.from_numpy(pixels).double()
        if kind == "maximum":
            wanted = F.max_pool2d(image, kernel, step, padding)
        else:
            wanted = F.avg_pool2d(image, kernel, step, padding, count_include_pad=kind == "average")
        np.testing.assert_allclose(found, wanted.numpy(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pads", [(1, 1, 1), (0, 2, 1), (1, 0, 0)])
def test_sums(isa: str, activation: str | None, pads: tuple[int, int, int]) -> None:
    for size in SIZES:
        x, other, y = (Planes(3, *size, pad, 16) for pad in pads)
        a, b = images_of(3, 3, *size), images_of(3, 3, *size)[::-1] + np.float32(5)
        found = run(isa, [(x, a), (other, b)], y, add_step(isa, (x, other, y), activation))
        wanted = ACTIVATIONS[activation][1](torch.from_numpy(a.astype(float) + b)).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("count", [1, 16, 20])
@pytest.mark.parametrize("mean", [True, False])
def test_to_panels(isa: str, count: int, mean: bool) -> None:
    """Means, and all pixels: more of them than a panel has features between its zeros."""
    table = core.table(isa)
    for size, pad in itertools.product(SIZES, (0, 1, 3)):
        x, pixels = Planes(200 if mean else 9, *size, pad, 16), images_of(count, 200 if mean else 9, *size, True)
        wanted = pixels.astype(float).mean(axis=(2, 3)) if mean else pixels.reshape(count, -1)
        features = wanted.shape[1]
        source, target = place("arena", 0), place("arena", x.floats)
        make = core.GlobalMean if mean else core.FromPlanes
        steps = [core.ToPlanes(table, native_planes(x), place("input", 0), source)]
        steps += [make(table, native_planes(x), source, target)]
        ones = core.panel_floats(features, 16)
        steps += [core.Add(table, ones, target, None, target, 0)]  # reads what lies between the features, too
        steps += [core.FromPanel(table, features, 16, target, place("output", 0))]
        found = np.full((count, features), np.nan, np.float32)
        run_program(steps, x.floats + ones, [pixels], [found])
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("count", [1, 5, 16, 35])
@pytest.mark.parametrize("pads", [(0, 2), (1, 1), (3, 0)])
def test_from_one_after_another_to_side_by_side_and_back(isa: str, count: int, pads: tuple[int, int]) -> None:
    table = core.table(isa)
    for size in SIZES:
        one, many, last = Planes(4, *size, pads[0]), Planes(4, *size, pads[1], 16), Planes(4, *size, 2)
        ones, manys, lasts = (native_planes(planes) for planes in (one, many, last))
        each, again = 16 * one.floats, 16 * one.floats + many.floats
        here, there = core.Place(core.Where.arena, 0, one.floats), place("arena", each)
        back = core.Place(core.Where.arena, again, last.floats)
        pixels = images_of(count, 4, *size, awkward=True)
        outputs = [np.full_like(pixels, np.nan) for _ in range(2)]
        program = core.Program(16, again + 16 * last.floats, [pixels[0].size], [pixels[0].size] * 2)
        program.add(core.ToPlanes(table, ones, place("input", 0), here), True)
        program.add(core.Regroup(table, ones, manys, here, there))
        program.add(core.FromPlanes(table, manys, there, place("output", 0)))
        program.add(core.Regroup(table, manys, lasts, there, back))
        program.add(core.FromPlanes(table, lasts, back, place("output", 1)), True)
        program.poison()
        program.run([pixels.ctypes.data], [y.ctypes.data for y in outputs], count)
        for found in outputs:
            np.testing.assert_array_equal(found, pixels)


def test_what_does_not_fit_is_refused() -> None:
    table, here, out = core.table("portable"), place("arena", 0), place("output", 0)
    one, many = core.Planes(3, 8, 8, 1), core.Planes(3, 8, 8, 1, 16)
    half = core.Planes(3, 4, 4, 0)
    for wrong, message in [
        (lambda: core.Pool(table, core.Pooling.maximum, many, half, 2, 2, 0, here, here), "side by side"),
        (lambda: core.AddPlanes(table, one, None, many, here, None, here, 0), "side by side"),
        (lambda: core.GlobalMean(table, many, here, out), "arena"),
        (lambda: core.Regroup(table, many, many, here, here), "before or after"),
        (lambda: core.Regroup(table, one, many, here, here), "place of its own"),
        (lambda: core.Regroup(table, half, many, here, here), "sizes"),
        (lambda: core.Regroup(table, one, many, out, here), "arena"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
