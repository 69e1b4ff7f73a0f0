"""Which candidates are timed together, and what their times say about the layout of every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.native.loading import core
from secateur.runtime.conv_layouts import beside_of
from secateur.runtime.convolution import native_planes
from secateur.runtime.geometry import is_image, planes_of
from secateur.runtime.graph import Graph
from secateur.runtime.paths import Costs, cheapest

__all__ = ["best_layouts", "lineups", "turn_times"]

Layouts = dict[str, str]
_TURNS = 3


def lineups(graph: Graph, tries: Mapping[str, tuple[str, ...]]) -> list[Layouts]:
    """Every candidate, each in a program where all convolutions go one way: image by image, or 16 side by side.

    Args:
        graph: of the layers.
        tries: output of a layer -> its candidates, the likeliest first.

    Returns:
        Output of a layer -> layout, for every program.
    """
    convs = {node.output for node in graph.nodes if node.kind == "conv"}
    found: list[Layouts] = []
    for way in sorted({beside_of(layout) for name in convs for layout in tries[name]}):
        here = {name: [layout for layout in tries[name] if beside_of(layout) == way] or tries[name] for name in convs}
        for i in range(max(map(len, here.values()))):
            found.append({name: layouts[min(i, len(layouts) - 1)] for name, layouts in here.items()})
    others = {name: layouts for name, layouts in tries.items() if name not in convs}  # they go the same way in all
    while len(found) < max(map(len, others.values()), default=1):
        found.append(dict(found[-1]) if found else {})
    return [
        some | {name: layouts[min(i, len(layouts) - 1)] for name, layouts in others.items()}
        for i, some in enumerate(found)
    ]


def best_layouts(
    graph: Graph, runs: Sequence[tuple[Layouts, Mapping[str, float]]], samples: int
) -> tuple[Layouts, dict[str, dict[str, float]]]:
    """The fastest layout of every layer; where images may lie either way, on the cheapest path through the graph.

    Args:
        graph: of the layers.
        runs: layouts of a program, and value -> microseconds of the step that makes it.
        samples: that were timed.

    Returns:
        Output of a layer -> layout, and layer -> layout -> microseconds, the least among layers that do the same work.
    """
    times: dict[str, dict[str, float]] = {}
    for layouts, steps in runs:
        for name, layout in layouts.items():
            times.setdefault(name, {}).setdefault(layout, steps[name])
    times = _pooled(graph, times)
    convs = {node.output for node in graph.nodes if node.kind == "conv"}
    ways = {way for name in convs for way in map(beside_of, times[name])}
    lying: dict[str, int] = {}
    if len(ways) > 1:
        lying = cheapest(graph, _costs(graph, runs, times, samples))
    allowed = {
        name: [layout for layout in found if name not in lying or beside_of(layout) == lying[name]]
        for name, found in times.items()
    }
    return {name: min(some, key=times[name].__getitem__) for name, some in allowed.items()}, times


def _pooled(graph: Graph, times: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The least time of each layout among layers that do the same work: a busy moment then misleads none of them."""
    least: dict[Any, dict[str, float]] = {}
    kinds: dict[str, Any] = {}
    for node in graph.nodes:
        if node.weight is None:
            continue
        sizes = tuple(node.weight.shape), graph.shapes[node.inputs[0]], graph.shapes[node.output]
        same = kinds[node.output] = (
            node.kind, sizes, node.stride, node.padding, node.residual, node.activation, round(node.sparsity, 2),
            tuple(times[node.output]),
        )  # fmt: skip
        best = least.setdefault(same, dict(times[node.output]))
        for layout, us in times[node.output].items():
            best[layout] = min(best[layout], us)
    return {name: dict(least[kinds[name]]) for name in times}


def _costs(
    graph: Graph, runs: Sequence[tuple[Layouts, Mapping[str, float]]], times: dict[str, dict[str, float]], samples: int
) -> Costs:
    convs = {node.output for node in graph.nodes if node.kind == "conv"}
    steps: dict[tuple[str, int], float] = {}
    enters: dict[int, float] = {}
    for layouts, found in runs:
        way = max(beside_of(layouts[name]) for name in convs)
        enters[way] = min(enters.get(way, np.inf), found.get("in", 0.0))
        for node in graph.nodes:
            if node.output not in convs:
                key = node.output, way
                steps[key] = min(steps.get(key, np.inf), found[node.output])
    for name in convs:
        for layout, us in times[name].items():
            key = name, beside_of(layout)
            steps[key] = min(steps.get(key, np.inf), us)
    return Costs(steps, turn_times(graph, samples), enters)


def turn_times(graph: Graph, samples: int) -> dict[tuple[str, int], float]:
    """(image, 16 or 1) -> microseconds of turning it to 16 images side by side, or back to one after another."""
    names = [name for name in graph.shapes if is_image(graph, name)]
    known: dict[Any, tuple[float, float]] = {}
    found: dict[tuple[str, int], float] = {}
    for name in names:
        one, many = planes_of(graph)[name], planes_of(graph, 16)[name]
        if (one, many) not in known:
            here = core.Place(core.Where.arena, 0, one.floats)
            there = core.Place(core.Where.arena, 16 * one.floats)
            program = core.Program(16, 16 * one.floats + many.floats, [], [])
            x, y = native_planes(one), native_planes(many)
            program.add(core.Regroup(core.active, y, x, there, here))
            program.add(core.Regroup(core.active, x, y, here, there))
            rounds = [program.time([], [], samples) for _ in range(_TURNS)]
            apart, beside = (1e6 * min(values) for values in zip(*rounds, strict=True))
            known[one, many] = apart, beside
        found[name, 1], found[name, 16] = known[one, many]
    return found
