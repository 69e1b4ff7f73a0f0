"""Which layers run on 16 images side by side: a shortest path over layers and layouts of values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from secateur.runtime.geometry import is_image
from secateur.runtime.graph import Graph, Node

__all__ = ["Costs", "cheapest"]

BESIDE = (1, 16)
_MOST = 512  # states that are kept from layer to layer: enough for eight values alive at once

_State: TypeAlias = frozenset[tuple[str, int, bool]]
"""Values alive: how they lie, and whether they were made so."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds for 16 images.

    Attributes:
        steps: (value, images side by side) -> of the step that makes it so. A node that is missing at one of the two
            cannot run so.
        turns: (value, images side by side) -> of turning it to that from the other way.
        enters: images side by side -> of bringing an input there.
    """

    steps: Mapping[tuple[str, int], float]
    turns: Mapping[tuple[str, int], float]
    enters: Mapping[int, float]


def cheapest(graph: Graph, costs: Costs) -> dict[str, int]:
    """How every image should lie where it is made.

    States are the layouts of the values that are alive, edges the layers, in both layouts, with the conversions that
    they need; all paths through the graph are compared, up to a number of states that no ordinary network reaches.

    Args:
        graph: whose convolutions may run either way. Pools and sums stay with what they are given; what becomes a panel
            or leaves is wanted side by side.
        costs: measured.

    Returns:
        Convolution, pool or sum -> images side by side.
    """
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    last |= dict.fromkeys(graph.outputs, len(graph.nodes))
    best: dict[_State, tuple[float, dict[str, int]]] = {frozenset(): (0.0, {})}
    for i, node in enumerate(graph.nodes):
        found: dict[_State, tuple[float, dict[str, int]]] = {}
        for state, (cost, path) in best.items():
            for beside in _ways(graph, node, state, costs):
                spent, after = _step(graph, node, beside, state, costs)
                alive = frozenset(value for value in after if last.get(value[0], -1) > i)
                made = path | {node.output: beside} if is_image(graph, node.output) else path
                if alive not in found or cost + spent < found[alive][0]:
                    found[alive] = cost + spent, made
        best = dict(sorted(found.items(), key=lambda item: item[1][0])[:_MOST])
    ends = ((cost + _leaving(graph, state, costs), path) for state, (cost, path) in best.items())
    return min(ends, key=lambda end: end[0])[1]


def _ways(graph: Graph, node: Node, state: _State, costs: Costs) -> tuple[int, ...]:
    if not is_image(graph, node.output):
        return BESIDE[1:]
    made = [beside for name, beside, so in state if so and name == node.inputs[0]]
    if node.kind != "conv":
        return tuple(made or BESIDE[1:])
    return tuple(beside for beside in BESIDE if (node.output, beside) in costs.steps)


def _step(graph: Graph, node: Node, beside: int, state: _State, costs: Costs) -> tuple[float, _State]:
    """What a node costs in a layout, with its conversions, and the values that there are then."""
    spent, after = costs.steps.get((node.output, beside), 0.0), set(state)
    for name in dict.fromkeys(node.inputs):
        lies = {other for value, other, _ in after if value == name}
        if not is_image(graph, name) or beside in lies:
            continue
        spent += costs.turns[name, beside] if lies else costs.enters[beside]
        after.add((name, beside, not lies))
    if is_image(graph, node.output):
        after.add((node.output, beside, True))
    return spent, frozenset(after)


def _leaving(graph: Graph, state: _State, costs: Costs) -> float:
    lying = {(name, beside) for name, beside, _ in state}
    return sum(
        costs.turns[name, 16] for name in graph.outputs if is_image(graph, name) and (name, 16) not in lying
    )  # fmt: skip
