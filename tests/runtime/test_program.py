"""Programs against the dense graph in float64: chains, branches, residuals, all widths, an arena of NaN."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.native.loading import core
from secateur.runtime import ACTIVATIONS, LAYOUTS, pack
from secateur.runtime.graph import Graph, Node, reference
from secateur.runtime.program import LANES, Program
from tests.native.oracle import instruction_sets, needs_core
from tests.runtime.oracle import FREE, random_mask

pytestmark = needs_core


def layer(number: int, rows: int, cols: int, layout: str, **more: Any) -> Node:
    torch.manual_seed(number)
    weight = torch.randn(rows, cols) * random_mask(rows, cols, 0.2, layout) / cols**0.5
    fields: dict[str, Any] = {"inputs": (f"v{number}",), "output": f"v{number + 1}", "bias": torch.randn(rows)} | more
    return Node(kind="linear", name=f"layer{number}", weight=weight, **fields)


def program_of(graph: Graph, layout: str, lanes: int, isa: str) -> Program:
    weights = {node.output: pack(node.weight, layout=layout) for node in graph.nodes if node.weight is not None}
    return Program(graph, weights, lanes, core.table(isa), poison=True)


def doubled(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def in_float64(graph: Graph, inputs: list[Tensor]) -> list[Tensor]:
    nodes = tuple(
        replace(node, weight=doubled(node.weight), bias=doubled(node.bias), scale=doubled(node.scale))
        for node in graph.nodes
    )
    return reference(replace(graph, nodes=nodes), [x.double() for x in inputs])


def chain(layout: str) -> Graph:
    sizes = (130, 97, 192, 40)
    names = ["relu", "gelu", None]
    nodes = tuple(
        layer(i, rows, cols, layout, activation=names[i]) for i, (cols, rows) in enumerate(itertools.pairwise(sizes))
    )
    return Graph(nodes, {f"v{i}": (size,) for i, size in enumerate(sizes)}, ("v0",), ("v3",))


def branches(layout: str) -> Graph:
    """An input with two readers, a residual, a sum, an activation alone, a value that is read and leaves."""
    nodes = (
        layer(0, 100, 50, layout, activation="silu"),
        layer(1, 100, 100, layout, inputs=("v1", "v1"), residual=True, activation="relu"),
        layer(2, 100, 50, layout, inputs=("v0",), bias=None),
        Node(kind="add", name="sum", inputs=("v2", "v3"), output="v4", residual=True),
        Node(kind="add", name="alone", inputs=("v4",), output="v5", activation="gelu_tanh"),
        layer(5, 7, 100, layout),
    )
    shapes = {f"v{i}": (100,) for i in range(1, 6)} | {"v0": (50,), "v6": (7,)}
    return Graph(nodes, shapes, ("v0",), ("v6", "v4", "v1"))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("layout", FREE)
@pytest.mark.parametrize("shape", [chain, branches])
def test_against_float64(isa: str, lanes: int, layout: str, shape: Callable[[str], Graph]) -> None:
    packed_single = LAYOUTS[layout].kernel in {"csr", "ell", "blocks"}
    if lanes == 1 and not packed_single:
        layout = "csr"
    if lanes > 1 and LAYOUTS[layout].kernel == "ell":
        layout = "rows"
    graph = shape(layout)
    program = program_of(graph, layout, lanes, isa)
    for samples in (1, lanes, 2 * lanes + 3):
        inputs = [torch.randn(samples, *graph.shapes[name]) for name in graph.inputs]
        for found, wanted in zip(program.run(inputs), in_float64(graph, inputs), strict=True):
            assert torch.allclose(found.double(), wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_sum_of_inputs(activation: str | None) -> None:
    node = Node(kind="add", inputs=("a", "b"), output="c", residual=True, activation=activation)
    graph = Graph((node,), dict.fromkeys("abc", (101,)), ("a", "b"), ("c",))
    inputs = [torch.randn(5, 101), torch.randn(5, 101)]
    found = Program(graph, {}, 16, poison=True).run(inputs)[0]
    assert torch.allclose(found.double(), in_float64(graph, inputs)[0], atol=2e-6)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("features", [1, 17, 96, 200])
def test_layer_norm(isa: str, lanes: int, affine: bool, features: int) -> None:
    """Far from zero: the mean must be taken out before squares are summed. Its reader meets zeros between the runs."""
    torch.manual_seed(features)
    scale, shift = (torch.randn(features), torch.randn(features)) if affine else (None, None)
    nodes = (
        Node(kind="layer_norm", inputs=("x",), output="v0", scale=scale, bias=shift, eps=1e-5),
        layer(0, 20, features, "even"),
    )
    graph = Graph(nodes, {"x": (features,), "v0": (features,), "v1": (20,)}, ("x",), ("v0", "v1"))
    program = program_of(graph, "csr" if lanes == 1 else "even", lanes, isa)
    for samples in (1, lanes + 3):
        inputs = [torch.randn(samples, features) + 50.0]
        for found, wanted in zip(program.run(inputs), in_float64(graph, inputs), strict=True):
            assert torch.allclose(found.double(), wanted, atol=3e-4, rtol=1e-4)


def test_an_image_goes_in_flat() -> None:
    nodes = (Node(kind="flatten", inputs=("image",), output="v0"), layer(0, 10, 48, "csr"))
    graph = Graph(nodes, {"image": (3, 4, 4), "v0": (48,), "v1": (10,)}, ("image",), ("v1",))
    inputs = [torch.randn(3, 3, 4, 4)]
    for lanes in (1, 16):
        found = program_of(graph, "csr", lanes, core.active.isa).run(inputs)[0]
        assert torch.allclose(found.double(), in_float64(graph, inputs)[0], atol=1e-5)


@pytest.mark.parametrize("backend", ["own", "gomp"])
@pytest.mark.parametrize("lanes", [1, 16, 64])
def test_a_program_on_several_threads(lanes: int, backend: str) -> None:
    """Inside a chunk the pieces of a step, in many chunks whole chunks; callers at the same time."""
    sizes = (300, 500, 400, 200)
    nodes = tuple(
        layer(i, rows, cols, "csr", activation="relu") for i, (cols, rows) in enumerate(itertools.pairwise(sizes))
    )
    graph = Graph(nodes, {f"v{i}": (size,) for i, size in enumerate(sizes)}, ("v0",), ("v3",))
    weights = {node.output: pack(node.weight, layout="csr") for node in nodes if node.weight is not None}
    program = Program(graph, weights, lanes, poison=True, spread=True)
    program.share(2, backend, [1000.0] * len(program.names))
    core.pool_insist(True)
    try:
        inputs = [[torch.randn(samples, 300)] for samples in (1, lanes, 5 * lanes + 3)]
        wanted = [in_float64(graph, x)[0] for x in inputs]
        for _ in range(20):
            for x, y in zip(inputs, wanted, strict=True):
                assert torch.allclose(program.run(x)[0].double(), y, atol=2e-5, rtol=1e-5)
    finally:
        core.pool_insist(False)


def test_many_threads_share_a_program() -> None:
    graph = chain("even")
    program = program_of(graph, "even", 16, core.active.isa)
    inputs = [[torch.randn(40, 130)] for _ in range(4)]
    wanted = [program.run(x)[0] for x in inputs]
    right: list[bool] = []

    def work(i: int) -> None:
        right.extend(torch.equal(program.run(inputs[i])[0], wanted[i]) for _ in range(50))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 200


def test_steps_are_timed_by_the_value_they_make() -> None:
    graph = branches("rows")
    times = program_of(graph, "rows", 16, core.active.isa).time([torch.randn(16, 50)])
    assert [name for name, _ in times] == ["in", "v1", "v2", "v3", "v4", "v5", "v6", "out", "out"]
    assert all(us > 0 for _, us in times)


def test_a_layout_that_does_not_run_at_these_lanes() -> None:
    with pytest.raises(ValueError, match="this layout does not run at these lanes"):
        program_of(chain("rows"), "rows", 1, core.active.isa)
    with pytest.raises(ValueError, match="this layout does not run at these lanes"):
        program_of(chain("ell"), "ell", 16, core.active.isa)
