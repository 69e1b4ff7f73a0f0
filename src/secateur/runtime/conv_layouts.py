"""The names of the ways to run a convolution, as choices, caches and people know them."""

from __future__ import annotations

from secateur.runtime.conv_candidates import conv_candidates, image_candidates
from secateur.runtime.conv_cuts import Cut
from secateur.runtime.depthwise import DepthwiseCut
from secateur.runtime.geometry import planes_of, window_of
from secateur.runtime.graph import Graph, Node

__all__ = ["beside_of", "named_cuts"]

_MOSTLY_ZEROS = 0.7  # above this density sparse kernels are not tried
_MANY = 0.3  # and above this one the dense kernel is


def named_cuts(graph: Graph, node: Node, threads: int = 1) -> dict[str, tuple[Cut | DepthwiseCut, bool]]:
    """Name -> (cut, whether zeros are kept), the likeliest first.

    A name says where pixels are read (``direct``: where they are; ``copied``: aligned for every tap; ``images``: 16
    images side by side), and how many output channels share their loads, or that four of like counts go in step
    (``even``); ``dense`` stands before it where every weight is kept. ``depthwise`` makes one plane of one plane, and
    leaves zeros out.

    Args:
        graph: that the node is of.
        node: a convolution.
        threads: into how many pieces the output channels are cut at least.
    """
    weight = node.weight
    assert weight is not None
    density = 1.0 - node.sparsity if weight.numel() else 0.0
    found: dict[str, tuple[Cut | DepthwiseCut, bool]] = {}
    for beside, candidates in ((1, conv_candidates), (16, image_candidates)):
        planes, window = planes_of(graph, beside), window_of(node)
        x, y = planes[node.inputs[0]], planes[node.output]
        if beside == 1 and window.groups == x.channels:
            found[DepthwiseCut.layout] = DepthwiseCut(-(-y.channels // threads)), False
        if density < _MOSTLY_ZEROS:
            found |= {_name(cut, beside): (cut, False) for cut in candidates(x, y, window, density, threads)}
        if density > _MANY:
            found |= {f"dense-{_name(cut, beside)}": (cut, True) for cut in candidates(x, y, window, 1.0, threads)}
    return found


def beside_of(layout: str) -> int:
    """Images side by side that a layout of a convolution wants.

    Example:
        >>> beside_of("direct4"), beside_of("dense-images4")
        (1, 16)
    """
    return 16 if "images" in layout else 1


def _name(cut: Cut, beside: int) -> str:
    way = "images" if beside > 1 else "direct" if cut.direct else "copied"
    return f"{way}-even" if cut.layout == "even" else f"{way}{cut.unit}" if cut.unit > 1 else way
