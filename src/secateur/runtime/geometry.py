"""How much padding the planes of every image of a graph keep."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from secateur.runtime.conv_cuts import Planes, Window
from secateur.runtime.graph import Graph, Node

__all__ = ["is_image", "planes_of", "window_of"]

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


def planes_of(graph: Graph) -> dict[str, Planes]:
    """The geometry of every image.

    A value keeps the largest padding of its readers; what is added must lie alike, and pixels that are read where they
    are need rows as long as those that are written.

    Args:
        graph: with the shapes of its values.

    Returns:
        Value -> planes; values that are panels are not in it.
    """
    if graph not in _KNOWN:
        _KNOWN[graph] = _planes(graph)
    return _KNOWN[graph]


_KNOWN: WeakKeyDictionary[Graph, dict[str, Planes]] = WeakKeyDictionary()  # every layer asks


def _planes(graph: Graph) -> dict[str, Planes]:
    pads = {name: 0 for name in graph.shapes if is_image(graph, name)}
    for node in graph.nodes:
        if node.kind in _WINDOWED:
            pads[node.inputs[0]] = max(pads[node.inputs[0]], *node.padding)
    changed = True
    while changed:
        changed = False
        for node in graph.nodes:
            alike = _alike(node, pads)
            most = max((pads[name] for name in alike), default=0)
            for name in alike:
                changed |= pads[name] != most
                pads[name] = most
    return {name: Planes(*_image(graph.shapes[name]), pad) for name, pad in pads.items()}


def _alike(node: Node, pads: dict[str, int]) -> list[str]:
    """Values that get the same padding: a residual and what it is added to, both sides of a kernel of 1 x 1."""
    if node.kind != "conv" or node.output not in pads:
        return []
    found = [node.output, node.inputs[1]] if node.residual else [node.output]
    if node.kernel == (1, 1) and node.stride == (1, 1) and not any(node.padding):
        found.append(node.inputs[0])
    return found


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width
