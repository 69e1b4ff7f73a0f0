"""What stands around convolutions: pooling, sums and conversions, against torch in float64, in an arena of NaN."""

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
from tests.runtime.test_conv_kernels import place, probe, run_program, window_sums

pytestmark = needs_core

StepOf: TypeAlias = Callable[[list[Any], Any], Any]
"""Places of the inputs, place of the result -> the step."""

SIZES = [(1, 1), (3, 7), (7, 8), (8, 14), (15, 17), (14, 28)]
POOLS = [(2, 2, 0), (3, 2, 1), (3, 1, 1), (5, 3, 2), (1, 2, 0), (4, 4, 2)]


def pixels_of(channels: int, height: int, width: int, awkward: bool = False) -> Array:
    """Mostly below zero, so that a zero of the padding would win a maximum."""
    generator = np.random.default_rng(channels + 10 * height + 100 * width)
    x = (generator.standard_normal((channels, height, width)) - 3).astype(np.float32)
    if awkward:
        x[0, height // 2, width // 2], x[-1, 0, 0] = np.nan, -np.inf
    return x


def run(isa: str, inputs: list[tuple[Planes, Array]], y: Planes, step: StepOf) -> Array:
    """Convert, run ``step(places of the inputs, place of y)``, convert back; the padding of y is looked at, too."""
    at = np.cumsum([0, *(planes.floats for planes, _ in inputs), y.floats]).tolist()
    places = [place("arena", begin) for begin in at]
    steps = [
        core.ToPlanes(core.table(isa), native_planes(planes), place("input", i), places[i])
        for i, (planes, _) in enumerate(inputs)
    ]
    sums, z = probe(isa, y, (at[-2], at[-1]))
    steps += [step(places[:-2], places[-2]), sums]
    steps += [core.FromPlanes(core.table(isa), native_planes(y), places[-2], place("output", 0))]
    steps += [core.FromPlanes(core.table(isa), native_planes(z), places[-1], place("output", 1))]
    outputs = [np.empty((y.channels, y.height, y.width), np.float32) for _ in range(2)]
    run_program(steps, at[-1] + z.floats, [np.ascontiguousarray(x) for _, x in inputs], outputs)
    found = outputs[0].astype(float)
    finite = np.isfinite(window_sums(found, y.pad))
    np.testing.assert_allclose(outputs[1][finite], window_sums(found, y.pad)[finite], rtol=1e-4, atol=1e-3)
    return found


def add_step(isa: str, values: tuple[Planes, Planes | None, Planes], activation: str | None) -> StepOf:
    """x, what is added if anything, y."""
    x, other, y = (None if planes is None else native_planes(planes) for planes in values)
    number = ACTIVATIONS[activation][0]
    return lambda at, to: core.AddPlanes(core.table(isa), x, other, y, at[0], at[1] if other else None, to, number)


def pool_step(isa: str, kind: str, x: Planes, y: Planes, window: tuple[int, int, int]) -> StepOf:
    """A window is its kernel, step and padding."""
    pooling, planes = getattr(core.Pooling, kind), (native_planes(x), native_planes(y))
    return lambda at, to: core.Pool(core.table(isa), pooling, *planes, *window, at[0], to)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("pad", [0, 1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_to_planes_and_back(isa: str, pad: int, size: tuple[int, int]) -> None:
    x, y = Planes(5, *size, pad), Planes(5, *size, 3 - pad)
    pixels = pixels_of(5, *size, awkward=True)
    found = run(isa, [(x, pixels)], y, add_step(isa, (x, None, y), None))
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("kind", ["maximum", "average", "average_pixels"])
@pytest.mark.parametrize("size", SIZES)
def test_pooling(isa: str, kind: str, size: tuple[int, int]) -> None:
    for (kernel, step, padding), more, awkward in itertools.product(POOLS, (0, 2), (False, True)):
        if min(size) + 2 * padding < kernel:
            continue
        x = Planes(3, *size, padding + more)
        y = Window(kernel, kernel, step, padding).output(3, x, more)
        pixels = pixels_of(3, *size, awkward)
        found = run(isa, [(x, pixels)], y, pool_step(isa, kind, x, y, (kernel, step, padding)))
        image = torch.from_numpy(pixels).double()[None]
        if kind == "maximum":
            wanted = F.max_pool2d(image, kernel, step, padding)
        else:
            wanted = F.avg_pool2d(image, kernel, step, padding, count_include_pad=kind == "average")
        np.testing.assert_allclose(found, wanted[0].numpy(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pads", [(1, 1, 1), (0, 2, 1), (1, 0, 0)])
def test_sums(isa: str, activation: str | None, pads: tuple[int, int, int]) -> None:
    for size in SIZES:
        x, other, y = (Planes(3, *size, pad) for pad in pads)
        a, b = pixels_of(3, *size), pixels_of(3, *size)[::-1] + np.float32(5)
        found = run(isa, [(x, a), (other, b)], y, add_step(isa, (x, other, y), activation))
        wanted = ACTIVATIONS[activation][1](torch.from_numpy(a.astype(float) + b)).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def means(isa: str, x: Planes, pixels: Array, outputs: int, panel: bool) -> Array:
    """Means of planes, or the pixels themselves, by way of a panel of one sample in the arena or straight out."""
    table, found = core.table(isa), np.full(outputs, np.nan, np.float32)
    steps = [core.ToPlanes(core.table(isa), native_planes(x), place("input", 0), place("arena", 0))]
    target = place("arena", x.floats) if panel else place("output", 0)
    flat = outputs != x.channels
    source = native_planes(x), place("arena", 0), target
    steps.append(core.FromPlanes(table, *source) if flat else core.GlobalMean(table, *source))
    if panel:
        steps.append(core.FromPanel(table, outputs, 1, target, place("output", 0)))
    run_program(steps, x.floats + core.panel_floats(outputs, 1), [np.ascontiguousarray(pixels)], [found])
    return found


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("panel", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_global_mean(isa: str, panel: bool, size: tuple[int, int]) -> None:
    """More channels than a panel has features between its zeros."""
    for pad, awkward in itertools.product((0, 1, 3), (False, True)):
        pixels = pixels_of(200, *size, awkward)
        found = means(isa, Planes(200, *size, pad), pixels, 200, panel)
        np.testing.assert_allclose(found, pixels.astype(float).mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("panel", [True, False])
def test_planes_become_features(panel: bool) -> None:
    for size, pad in itertools.product(SIZES[1:], (0, 2)):
        pixels = pixels_of(4, *size, awkward=True)
        found = means("portable", Planes(4, *size, pad), pixels, pixels.size, panel)
        np.testing.assert_array_equal(found, pixels.reshape(-1))


def test_what_does_not_fit_is_refused() -> None:
    table, here, out = core.table("portable"), place("arena", 0), place("output", 0)
    x, y = core.Planes(3, 8, 8, 1), core.Planes(3, 4, 4, 0)
    most = core.Pooling.maximum
    for wrong, message in [
        (lambda: core.Pool(table, most, x, y, 3, 1, 1, here, here), "sizes"),
        (lambda: core.Pool(table, most, x, core.Planes(2, 4, 4, 0), 2, 2, 0, here, here), "channels"),
        (lambda: core.Pool(table, most, x, y, 2, 2, 2, here, here), "window"),
        (lambda: core.Pool(table, most, core.Planes(3, 8, 8, 0), y, 3, 2, 1, here, here), "padding"),
        (lambda: core.Pool(table, most, x, y, 2, 2, 0, here, out), "arena"),
        (lambda: core.AddPlanes(table, x, None, y, here, None, here, 0), "sizes"),
        (lambda: core.AddPlanes(table, x, x, x, here, None, here, 0), "second"),
        (lambda: core.AddPlanes(table, x, None, x, here, None, here, 99), "activation"),
        (lambda: core.ToPlanes(table, x, here, here), "input"),
        (lambda: core.FromPlanes(table, x, here, place("input", 0)), "inputs"),
        (lambda: core.GlobalMean(table, x, out, here), "arena"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
