"""Depthwise convolutions in the core against loops in float64, in an arena of NaN, and how they are chosen."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from secateur.native.loading import core
from secateur.runtime import ACTIVATIONS
from secateur.runtime.choose import choose, layouts_of, pack_layer
from secateur.runtime.columns import Array
from secateur.runtime.conv_cuts import Planes, Window
from secateur.runtime.convolution import native_planes
from secateur.runtime.depthwise import DepthwiseCut, PackedDepthwise
from secateur.runtime.graph import Graph, Node, reference
from secateur.runtime.program import Program
from tests.native.oracle import instruction_sets, needs_core
from tests.runtime.test_conv_kernels import Layer, expected, layer, place
from tests.runtime.test_conv_steps import run as run_step

pytestmark = needs_core


def kept(work: Layer) -> torch.Tensor:
    return torch.from_numpy(np.where(work.mask, work.weight, np.float32(0)))


def step(isa: str, work: Layer, chunk: int, at: list[Any], to: Any) -> Any:
    packed = PackedDepthwise(kept(work), DepthwiseCut(chunk), work.x, work.y, work.window)
    residual = None if work.residual is None else at[1]
    number = ACTIVATIONS[work.activation][0]
    return packed.step(core.table(isa), at[0], to, residual, torch.from_numpy(work.bias), number)


def run(isa: str, work: Layer, chunk: int = 2) -> Array:
    """The result; `run_step` looks at its padding, too."""
    inputs = [(work.x, work.pixels)] + ([] if work.residual is None else [(work.y, work.residual)])
    return run_step(isa, inputs, work.y, lambda at, to: step(isa, work, chunk, at, to))


def check(isa: str, work: Layer, chunk: int = 2) -> None:
    wanted = expected(work)
    np.testing.assert_allclose(run(isa, work, chunk), wanted, rtol=1e-5, atol=4e-6 * float(np.abs(wanted).max()))


def square(kernel: int, step: int, padding: int, channels: int) -> Window:
    return Window(kernel, kernel, step, padding, 1, channels)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7])
def test_ragged_sizes(isa: str, stride: int, kernel: int) -> None:
    """Padding, activations, residuals and planes with removed weights take turns."""
    activations = itertools.cycle(ACTIVATIONS)
    heights = itertools.cycle([1, 2, 5, 8, 17])
    for width in range(1, 18):
        padding = (width + kernel + stride) % 3
        size = (max(next(heights), kernel - 2 * padding), max(width, kernel - 2 * padding))
        pads = (padding + width % 2, (width + kernel // 2) % 3)
        window = square(kernel, stride, padding, 3)
        density = 0.6 if width % 4 == 2 else 1.0
        check(isa, layer((3, 3), size, window, density, pads, width % 5 == 1, next(activations)))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (3, 3)])
def test_rows_of_many_vectors(isa: str, kernel: int, stride: int) -> None:
    for width in (23, 24, 32, 41, 56, 63, 64, 65, 112, 140):
        for density in (1.0, 0.7):
            check(isa, layer((2, 2), (7, width), square(kernel, stride, kernel // 2, 2), density, activation="relu"))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_residual_and_activation(isa: str, activation: str | None) -> None:
    for density in (1.0, 0.5):
        check(isa, layer((4, 4), (9, 35), square(3, 1, 1, 4), density, None, True, activation))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(
    "window", [Window(1, 5, 1, 2, 1, 4), Window(3, 5, 2, 2, 1, 4), Window(3, 3, 1, 2, 2, 4), Window(5, 3, 2, 2, 2, 4)]
)
def test_oblong_and_dilated_windows(isa: str, window: Window) -> None:
    check(isa, layer((4, 4), (9, 15), window, 1.0, residual=True))


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 12, 100])
@pytest.mark.parametrize("outputs", [4, 8, 12])
def test_several_outputs_of_a_channel_in_several_pieces(chunk: int, outputs: int) -> None:
    work = layer((4, outputs), (8, 11), square(3, 2, 1, 4), 1.0, residual=True)
    for isa in instruction_sets():
        check(isa, work, chunk)
        here = place("arena", 0)
        assert step(isa, work, chunk, [here, here], here).pieces == -(-outputs // chunk)


@pytest.mark.parametrize("isa", instruction_sets())
def test_nan_and_infinity_come_through_kept_weights_only(isa: str) -> None:
    for kernel, stride in itertools.product((3, 5), (1, 2)):
        work = layer((3, 3), (12, 20), square(kernel, stride, kernel // 2, 3), 1.0, (kernel // 2, 0))
        work.mask[0] = False
        work.mask[1] = np.arange(kernel * kernel).reshape(1, kernel, kernel) == kernel * kernel // 2
        work.pixels[:, 4, 7], work.pixels[:, 8, 19], work.pixels[:, 0, 0] = np.nan, np.inf, -np.inf
        found, wanted = run(isa, work), expected(work)
        assert np.isfinite(found[0]).all()
        assert 0 < np.isfinite(found[1]).mean() < 1
        assert np.isfinite(found[1]).sum() > np.isfinite(found[2]).sum()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("isa", instruction_sets())
def test_denormal_numbers_count(isa: str) -> None:
    work = layer((2, 2), (5, 19), square(3, 1, 1, 2), 1.0)
    work = replace(work, pixels=work.pixels * np.float32(1e-39), bias=work.bias * 0)
    found, wanted = run(isa, work), expected(work)
    assert 0 < np.abs(wanted).max() < 1e-37
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-44)


ORDINARY = layer((4, 4), (8, 8), square(3, 1, 1, 4), 1.0)
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: made(window=core.Window(3, 3, 1, 1, 1, 2)), "one input channel"),
    (lambda: made(length=35), "another size"),
    (lambda: made(chunk=0), "a piece"),
    (lambda: made(activation=99), "activation"),
    (lambda: made(to=place("output", 0)), "arena"),
    (lambda: made(y=core.Planes(6, 8, 8, 1)), "groups"),
    (lambda: made(y=core.Planes(4, 8, 7, 1)), "sizes"),
    (lambda: made(x=core.Planes(4, 8, 8, 0)), "padding"),
    (lambda: made(x=core.Planes(4, 3, 3, 0), y=core.Planes(4, 1, 1, 0),
                  window=core.Window(1, 1, 200, 0, 1, 4), length=4), "too large"),
]  # fmt: skip


def made(**changed: Any) -> Any:
    values = np.ones(36, np.float32)
    arguments = {
        "table": core.table("portable"), "x": native_planes(ORDINARY.x), "y": native_planes(ORDINARY.y),
        "window": core.Window(3, 3, 1, 1, 1, 4), "chunk": 4, "weights": values.ctypes.data, "length": values.size,
        "from_": place("arena", 0), "to": place("arena", 0), "residual": None, "bias": 0, "activation": 0,
    }  # fmt: skip
    return core.DepthwiseConv(**{**arguments, **changed})


def test_what_does_not_fit_is_refused() -> None:
    assert made().pieces == 1
    for wrong, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            wrong()


def test_streams_come_back_and_others_are_refused() -> None:
    work = layer((4, 4), (8, 8), square(3, 1, 1, 4), 0.5)
    cut, geometry = DepthwiseCut(4), (work.x, work.y, work.window)
    packed = PackedDepthwise(kept(work), cut, *geometry)
    again = PackedDepthwise.of_streams(packed.tensors(), cut, *geometry)
    assert torch.equal(again.tensors()["values"], kept(work).flatten())
    assert again.nbytes == 4 * 36
    for wrong in ({}, {"values": torch.zeros(36, dtype=torch.float64)}, {"values": torch.zeros(4, 9)}):
        with pytest.raises(ValueError, match="streams of a depthwise"):
            PackedDepthwise.of_streams(wrong, cut, *geometry)


def graph(groups: int, outputs: int, weight_inputs: int = 1) -> Graph:
    torch.manual_seed(0)
    node = Node(
        kind="conv", output="y", inputs=("x",), name="layer", weight=torch.randn(outputs, weight_inputs, 3, 3),
        kernel=(3, 3), stride=(2, 2), padding=(1, 1), groups=groups, activation="relu6",
    )  # fmt: skip
    shapes = {"x": (groups * weight_inputs, 9, 14), "y": (outputs, 5, 7)}
    return Graph((node,), shapes, ("x",), ("y",))


def test_it_is_a_candidate_of_depthwise_layers_alone() -> None:
    for groups, outputs in ((8, 8), (4, 12), (1, 6)):
        found = graph(groups, outputs)
        layouts = layouts_of(found, found.nodes[0], 1)
        assert layouts[0] == "depthwise"
        assert len(layouts) > 1
    grouped = graph(4, 8, 2)
    assert "depthwise" not in layouts_of(grouped, grouped.nodes[0], 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_programs_run_it(threads: int) -> None:
    found, x = graph(4, 12), torch.randn(3, 4, 9, 14)
    packed = pack_layer(found, found.nodes[0], "depthwise", threads)
    assert isinstance(packed, PackedDepthwise)
    assert packed.cut.chunk == (12 if threads == 1 else 2)
    (y,) = Program(found, {"y": packed}, 1).run([x])
    torch.testing.assert_close(y, reference(found, [x])[0])


def test_it_is_measured_beside_the_others() -> None:
    found = graph(8, 8)
    (line,) = choose(found, [torch.randn(1, 8, 9, 14)], 1).layers
    assert set(line.tried) == set(layouts_of(found, found.nodes[0], 1))
    assert line.layout == min(line.tried, key=lambda name: line.tried[name])


def test_padding_of_planes_is_written() -> None:
    """What a wide window reads beside the pixels are zeros, whatever was there."""
    x = Planes(2, 6, 16, 1)
    window = square(3, 1, 1, 2)
    for pad in (0, 1, 3, 9):
        work = replace(layer((2, 2), (6, 16), window, 1.0), x=x, y=window.output(2, x, pad))
        for isa in instruction_sets():
            check(isa, work)
