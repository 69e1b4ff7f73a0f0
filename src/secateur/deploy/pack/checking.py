"""Graphs from files that nobody vouches for: what a program would be built from must fit together, number by number."""

from __future__ import annotations

import math
from collections.abc import Callable

from secateur.runtime.build import runs
from secateur.runtime.geometry import is_image
from secateur.runtime.graph import WEIGHTED, Graph, Node, Shape
from secateur.runtime.linear import ACTIVATIONS

__all__ = ["check_graph"]

_WINDOWED = ("conv", "max_pool", "average_pool")
_FUSING = WEIGHTED | {"add"}
_MOST = 256  # of kernels, strides and paddings


def check_graph(graph: Graph, limit: int) -> None:
    """Refuse a graph that is not one.

    Args:
        graph: with fields of the right types; shapes of positive numbers.
        limit: bytes that its values may take for one sample.

    Raises:
        ValueError: naming the node.
    """
    known = dict.fromkeys(graph.inputs)
    if len(known) != len(graph.inputs) or not graph.outputs or not graph.inputs:
        raise ValueError("altered: a program without inputs or outputs, or with one input twice")
    for node in graph.nodes:
        if node.output in known or not all(name in known for name in node.inputs):
            raise ValueError(f"altered: node {node.output!r} reads what nobody made, or is made twice")
        known[node.output] = None
        if node.output not in graph.shapes:
            raise ValueError(f"altered: value {node.output!r} has no shape")
    if set(known) != set(graph.shapes) or not set(graph.outputs) <= set(known) - set(graph.inputs):
        raise ValueError("altered: shapes or outputs of values that nobody makes")
    if 4 * sum(graph.floats(name) for name in graph.shapes) > limit:
        raise ValueError(f"its values take more than {limit} bytes for one sample; if you trust it, raise max_bytes=")
    for node in graph.nodes:
        _check_numbers(node)
        _check_shapes(graph, node)
    for node in graph.nodes:
        wanted = {node.kind in (*_WINDOWED, "mean")} if node.kind not in ("add", "flatten") else {True, False}
        places = {is_image(graph, name) for name in node.inputs}
        if not places <= wanted or (node.residual and len(places) != 1):
            raise ValueError(f"altered: node {node.output!r} mixes images and rows")


def _check_numbers(node: Node) -> None:
    pairs: list[tuple[int, int]] = [node.kernel, node.stride, node.padding]
    square = node.stride[0] == node.stride[1] and node.padding[0] == node.padding[1]
    lows = (1, 1, 0)
    fine = (
        runs(node.kind)
        and node.activation in ACTIVATIONS
        and len(node.inputs) == 1 + node.residual
        and (node.kind in _FUSING or not (node.residual or node.activation))
        and (node.weight is not None) == (node.kind in WEIGHTED)
        and (node.bias is None or node.kind in WEIGHTED or node.kind == "layer_norm")
        and (node.scale is None or node.kind == "layer_norm")
        and all(low <= number <= _MOST for low, pair in zip(lows, pairs, strict=True) for number in pair)
        and (square and (node.kind == "conv" or node.kernel[0] == node.kernel[1]))
        and node.groups >= 1
        and math.isfinite(node.eps)
        and node.eps >= 0
    )
    if not fine:
        raise ValueError(f"altered: node {node.output!r} of kind {node.kind!r} has numbers that no layer has")


def _check_shapes(graph: Graph, node: Node) -> None:
    """As torch would compute them; asking torch itself, on tensors without memory, would import its compiler."""
    given, made = (graph.shapes[name] for name in (node.inputs[0], node.output))
    fine = made in _SHAPES[node.kind](node, given)
    fine = fine and all(tensor is None or tuple(tensor.shape) == made[:1] for tensor in (node.bias, node.scale))
    if not fine or (node.residual and graph.shapes[node.inputs[1]] != made):
        raise ValueError(f"altered: node {node.output!r} of kind {node.kind!r} does not make {made} of {given}")


def _linear(node: Node, given: Shape) -> list[Shape]:
    assert node.weight is not None
    return [(len(node.weight),)] if given == tuple(node.weight.shape[1:]) else []


def _conv(node: Node, given: Shape) -> list[Shape]:
    assert node.weight is not None
    outputs, inputs, *kernel = node.weight.shape
    fits = tuple(kernel) == node.kernel and given[:1] == (inputs * node.groups,) and outputs % node.groups == 0
    return _windows(node, given, outputs) if fits else []


def _pool(node: Node, given: Shape) -> list[Shape]:
    return _windows(node, given, given[0]) if 2 * node.padding[0] <= node.kernel[0] else []


def _windows(node: Node, given: Shape, channels: int) -> list[Shape]:
    if len(given) != 3:
        return []
    sizes = zip(given[1:], node.kernel, node.stride, node.padding, strict=True)
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in sizes)
    return [(channels, height, width)] if height > 0 and width > 0 else []


_SHAPES: dict[str, Callable[[Node, Shape], list[Shape]]] = {
    "linear": _linear,
    "conv": _conv,
    "max_pool": _pool,
    "average_pool": _pool,
    "mean": lambda node, given: [(given[0], 1, 1), given[:1]] if len(given) == 3 else [],
    "flatten": lambda node, given: [(math.prod(given),)],
    "layer_norm": lambda node, given: [given] if len(given) == 1 else [],
    "add": lambda node, given: [given],
}
"""Kind -> (node, shape of its first input) -> the shapes that it may make; none where it cannot read that."""
