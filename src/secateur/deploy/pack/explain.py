"""What `fast.explain()` says: a line per layer, the sum, and the whole model beside it."""

from __future__ import annotations

from secateur.deploy.pack.region import RegionModule
from secateur.records import Explanation, LayerLine
from secateur.runtime.candidates import pattern_of
from secateur.runtime.choose import Chosen, LayerTime
from secateur.runtime.graph import Graph, Node

__all__ = ["explained"]


def explained(regions: list[RegionModule], us: float, dense_us: float, samples: int) -> Explanation:
    """The lines of all programs, as they were decided first."""
    lines: list[LayerLine] = []
    other = 0.0
    for number, region in enumerate(regions):
        chosen = next(iter(region.chosen.values()))
        lines += _lines(region, chosen, number)
        other += chosen.other_us if chosen.wins else chosen.dense_us - sum(layer.dense_us for layer in chosen.layers)
    reason = "" if us < dense_us else "the packed model was not faster than torch here"
    return Explanation(tuple(lines), other, us, dense_us, reason, samples, regions[0].threads)


def _lines(region: RegionModule, chosen: Chosen, number: int) -> list[LayerLine]:
    nodes = [node for node in region.graph.nodes if node.weight is not None]
    return [_line(region.graph, node, layer, chosen, number) for node, layer in zip(nodes, chosen.layers, strict=True)]


def _line(graph: Graph, node: Node, layer: LayerTime, chosen: Chosen, number: int) -> LayerLine:
    weight, samples = node.weight, chosen.samples
    assert weight is not None
    places = samples * graph.floats(node.output) // max(len(weight), 1)  # of a channel: a weight takes part at each
    return LayerLine(
        name=node.name,
        sparsity=node.sparsity,
        pattern=pattern_of(weight),
        layout=layer.layout if chosen.wins else "torch",
        dense_us=layer.dense_us,
        us=layer.us if chosen.wins else layer.dense_us,
        program=number if chosen.wins else None,
        flops=2 * places * int(weight.count_nonzero()),
        dense_flops=2 * places * weight.numel(),
        weight_bytes=layer.weight_bytes if chosen.wins else weight.nbytes,
        input_bytes=4 * samples * sum(graph.floats(name) for name in node.inputs),
        output_bytes=4 * samples * graph.floats(node.output),
    )
