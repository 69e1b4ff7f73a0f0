"""How the images of a graph lie: side by side or not, and how much padding their planes keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias
from weakref import WeakKeyDictionary

from secateur.runtime.conv_cuts import Planes, Window
from secateur.runtime.convolution import PackedConv
from secateur.runtime.depthwise import PackedDepthwise
from secateur.runtime.formats import Packed
from secateur.runtime.graph import Graph, Node

__all__ = ["Weights", "images_beside", "is_image", "planes_of", "window_of"]

Weights: TypeAlias = Mapping[str, Packed | PackedConv | PackedDepthwise]
"""Output of a layer -> its packed weight."""


_WINDOWED = frozenset({"conv", "max_pool", "average_pool"})


def is_image(graph: Graph, value: str) -> bool:
    """Whether a value lies in planes: three axes, and not the mean of each plane."""
    maker = next((node for node in graph.nodes if node.output == value), None)
    if maker is None:
        return len(graph.shapes[value]) == 3 and any(node.kind != "flatten" for node in graph.readers(value))
    return maker.kind in _WINDOWED or (maker.kind == "add" and is_image(graph, maker.inputs[0]))


def window_of(node: Node) -> Window:
    """The kernel of a convolution or a pool."""
    (height, width), step, padding = node.kernel, node.stride[0], node.padding[0]
    return Window(height, width, step, padding, 1, node.groups)


def planes_of(graph: Graph, beside: int = 1) -> dict[str, Planes]:
    """The geometry of every image.

    A value keeps the largest padding of its readers; what is added must lie alike, and pixels of one image that are
    read where they are need rows as long as those that are written.

    Args:
        graph: with the shapes of its values.
        beside: images side by side, 1 or 16.

    Returns:
        Value -> planes; values that are panels are not in it.
    """
    known = _KNOWN.setdefault(graph, {})
    if beside not in known:
        known[beside] = _planes(graph, beside)
    return known[beside]


_KNOWN: WeakKeyDictionary[Graph, dict[int, dict[str, Planes]]] = WeakKeyDictionary()  # every layer asks


def images_beside(graph: Graph, weights: Weights, lanes: int) -> dict[str, int]:
    """How many images lie side by side in every value that is one, when it is made.

    The packed weights say so for convolutions. Pools and sums take what they are given; an input becomes what its first
    convolution wants.

    Args:
        graph: that the weights are of.
        weights: output of a layer -> its packed weight.
        lanes: of the program.
    """
    convs = {name: packed.x.lanes for name, packed in weights.items() if not isinstance(packed, Packed)}
    found: dict[str, int] = {}
    for name in graph.inputs:
        if is_image(graph, name):
            found[name] = next((convs[node.output] for node in graph.readers(name) if node.output in convs), lanes)
    for node in graph.nodes:
        if is_image(graph, node.output):
            found[node.output] = convs[node.output] if node.output in convs else found[node.inputs[0]]
    return found


def _planes(graph: Graph, beside: int) -> dict[str, Planes]:
    pads = {name: 0 for name in graph.shapes if is_image(graph, name)}
    for node in graph.nodes:
        if node.kind in _WINDOWED:
            pads[node.inputs[0]] = max(pads[node.inputs[0]], *node.padding)
    changed = True
    while changed:
        changed = False
        for node in graph.nodes:
            alike = _alike(node, pads, beside)
            most = max((pads[name] for name in alike), default=0)
            for name in alike:
                changed |= pads[name] != most
                pads[name] = most
    return {name: Planes(*_image(graph.shapes[name]), pad, beside) for name, pad in pads.items()}


def _alike(node: Node, pads: dict[str, int], beside: int) -> list[str]:
    """Values that get the same padding: a residual and what it is added to, both sides of a kernel of 1 x 1."""
    if node.kind != "conv" or node.output not in pads:
        return []
    found = [node.output, node.inputs[1]] if node.residual else [node.output]
    if beside == 1 and node.kernel == (1, 1) and node.stride == (1, 1) and not any(node.padding):
        found.append(node.inputs[0])
    return found


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width
