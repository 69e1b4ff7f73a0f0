"""The choice by measurement: each layer runs the kernel that was fastest here, in its place in the whole program."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor

from secateur.runtime.candidates import candidates
from secateur.runtime.columns import RUN
from secateur.runtime.conv_cuts import Cut
from secateur.runtime.conv_layouts import beside_of, named_cuts
from secateur.runtime.convolution import PackedConv
from secateur.runtime.depthwise import DepthwiseCut, PackedDepthwise
from secateur.runtime.formats import Packed, pack, pieces_of
from secateur.runtime.geometry import Weights, planes_of, window_of
from secateur.runtime.graph import Graph, Node, reference
from secateur.runtime.layouts import Pieces
from secateur.runtime.lineups import best_layouts, lineups
from secateur.runtime.program import Program
from secateur.runtime.words import KNOWN

__all__ = [
    "BACKENDS",
    "Chosen",
    "LayerTime",
    "choose",
    "cut_of",
    "fits",
    "interleaved",
    "layouts_of",
    "pack_layer",
    "share",
]

BACKENDS = ("one", "own", "gomp")
"""Whose threads run a program: the caller's alone, those of the core, those of torch."""
_DENSE = {
    "dense": "block16",
    "dense-4": "block4",
    "dense-bf16": "block16-bf16",
    "dense-int8": "block16-int8",
}
_ROUNDS = 7
_TRIES = 3  # runs in a round; the fastest counts
_SLOW, _FEW = 50_000.0, 3  # microseconds of a program that is timed in fewer rounds, without a second run in each
_LOST = 1.5  # slow calls that took so much longer than the fastest twice are not called again


@dataclass(frozen=True, slots=True)
class LayerTime:
    """What one layer takes, in microseconds.

    Attributes:
        name: of the layer.
        layout: what it runs with.
        us: in the program.
        dense_us: in torch, bias and activation included.
        tried: every candidate and its time.
        weight_bytes: of the packed weight.
    """

    name: str
    layout: str
    us: float
    dense_us: float
    tried: Mapping[str, float]
    weight_bytes: int


@dataclass(frozen=True, eq=False)
class Chosen:
    """A program and what it was measured at.

    Attributes:
        program: with the chosen layouts.
        backend: whose threads run it: ``one``, ``own`` or ``gomp``.
        layouts: output of a layer -> its layout.
        layers: a line per layer with a weight.
        other_us: all steps without a weight: conversions, sums, pools.
        us: the whole program, as one call.
        dense_us: the same graph in torch, dense.
        samples: rows of the measurement.
    """

    program: Program
    backend: str
    layouts: dict[str, str]
    layers: tuple[LayerTime, ...]
    other_us: float
    us: float
    dense_us: float
    samples: int

    @property
    def wins(self) -> bool:
        """Whether the program is faster than torch."""
        return self.us < self.dense_us


def layouts_of(graph: Graph, node: Node, lanes: int, dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
    """What is worth timing for a layer."""
    assert node.weight is not None
    if node.kind != "conv":
        return candidates(node.weight, lanes, dtype)
    return tuple(name for name in named_cuts(graph, node) if beside_of(name) <= lanes)


def pack_layer(graph: Graph, node: Node, layout: str, threads: int = 1) -> Packed | PackedConv | PackedDepthwise:
    """The weight of a layer in a layout, cut for so many threads; layouts that are called dense keep every zero."""
    weight, cut = node.weight, cut_of(graph, node, layout, threads)
    assert weight is not None
    dense = layout.startswith("dense")
    if not isinstance(cut, Pieces):
        planes, window = planes_of(graph, beside_of(layout)), window_of(node)
        x, y = planes[node.inputs[0]], planes[node.output]
        if isinstance(cut, DepthwiseCut):
            return PackedDepthwise(weight, cut, x, y, window)
        return PackedConv(weight, cut, x, y, window, dense)
    mask = torch.ones_like(weight, dtype=torch.bool) if dense else weight != 0
    return pack(weight, mask, _DENSE.get(layout, layout), cut)


def cut_of(graph: Graph, node: Node, layout: str, threads: int = 1) -> Cut | DepthwiseCut | Pieces:
    """How the weight of a layer is cut for a layout and so many threads."""
    if node.kind == "conv":
        return named_cuts(graph, node, 3 * threads if threads > 1 else 1)[layout][0]
    assert node.weight is not None
    name, (rows, cols) = _DENSE.get(layout, layout), node.weight.shape
    if KNOWN[name].inputs > 1:
        kept = torch.ones_like(node.weight, dtype=torch.bool) if layout in _DENSE else node.weight != 0
        pieces = pieces_of(name, kept)
    else:
        pieces = KNOWN[name].cut(rows, cols, 1.0 if layout in _DENSE else 1.0 - node.sparsity)
    if threads > 1:  # two to four pieces for each
        pieces = replace(pieces, chunk=min(pieces.chunk, max(rows // (3 * threads) // RUN, 1) * RUN))
    return pieces


def fits(graph: Graph, layouts: Mapping[str, str], lanes: int, dtype: torch.dtype = torch.float32) -> bool:
    """Whether remembered layouts are ones that this graph could have been given."""
    weighted = [node for node in graph.nodes if node.weight is not None]
    return set(layouts) == {node.output for node in weighted} and all(
        layouts[node.output] in layouts_of(graph, node, lanes, dtype) for node in weighted
    )


def choose(
    graph: Graph,
    inputs: list[Tensor],
    lanes: int,
    given: Mapping[str, str] | None = None,
    threads: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Chosen:
    """Time every candidate of every layer, in turn, in the whole program, and keep the fastest.

    Args:
        graph: what to compute.
        inputs: one per input of the graph, contiguous; their values do not matter.
        lanes: samples side by side.
        given: layouts that are known already; nothing is tried then.
        threads: at most so many; one where that is faster.
        dtype: bfloat16 or int8 lets linear layers run in it where that is faster; values stay float32.

    Returns:
        The program and its times.
    """
    weighted = {node.output: node for node in graph.nodes if node.weight is not None}
    tries = {
        name: (given[name],) if given else layouts_of(graph, node, lanes, dtype) for name, node in weighted.items()
    }
    packed = {
        (name, layout): pack_layer(graph, weighted[name], layout)
        for name, layouts in tries.items()
        for layout in layouts
    }
    tried = [dict(given)] if given else lineups(graph, tries)
    programs = [Program(graph, {name: packed[name, layout] for name, layout in some.items()}, lanes) for some in tried]
    few = [x[:lanes] for x in inputs] if lanes > 1 and len(tried) > 1 else inputs  # one block says enough
    best, by_layer = best_layouts(
        graph, list(zip(tried, _step_times(programs, few), strict=True)), min(lanes, len(inputs[0]))
    )
    program = Program(graph, {name: packed[name, layout] for name, layout in best.items()}, lanes)
    final = _step_times([program], inputs, tries=1)[0]
    rounds: list[dict[str, float]] = []
    # Slow networks run in torch as seldom as can be: the runs that say how long all of it takes tell the layers apart.
    slow = sum(final.values()) > _SLOW
    torch_run = (lambda: rounds.append(_dense_round(graph, inputs))) if slow else partial(reference, graph, inputs)
    shared = [] if threads == 1 else _shared(graph, best, lanes, threads, inputs)
    runs = [("one", program), *shared]
    *us, dense_us = interleaved([*(partial(run.run, inputs) for _, run in runs), torch_run])
    fastest, dense = us.index(min(us)), _dense_times(graph, inputs, rounds)
    layers = tuple(
        LayerTime(node.name, best[name], final[name], dense[name], by_layer[name], packed[name, best[name]].nbytes)
        for name, node in weighted.items()
    )
    other = sum(final.values()) - sum(layer.us for layer in layers)
    backend, program = runs[fastest]
    return Chosen(program, backend, best, layers, other, us[fastest], dense_us, len(inputs[0]))


def _shared(
    graph: Graph, layouts: Mapping[str, str], lanes: int, threads: int, inputs: list[Tensor]
) -> list[tuple[str, Program]]:
    """The program on several threads, ours and torch's."""
    packed = {
        node.output: pack_layer(graph, node, layouts[node.output], threads)
        for node in graph.nodes
        if node.weight is not None
    }
    return [(backend, share(graph, packed, lanes, threads, backend, inputs)) for backend in BACKENDS[1:]]


def share(graph: Graph, packed: Weights, lanes: int, threads: int, backend: str, inputs: list[Tensor]) -> Program:
    """A program on several threads; one run on these inputs says how long its steps take."""
    program = Program(graph, packed, lanes, spread=True)
    program.share(threads, backend, [us for _, us in program.time([x[:lanes] for x in inputs])])
    return program


def _step_times(programs: list[Program], inputs: list[Tensor], tries: int | None = None) -> list[dict[str, float]]:
    """Of every program, step -> microseconds: the median over rounds in which they take turns; of few the least."""
    tries, rounds, usual = _TRIES if tries is None else tries, _ROUNDS, median
    found = [[[us for _, us in program.time(inputs)]] for program in programs]
    if sum(sum(times) for (times,) in found) > _SLOW * len(programs):
        tries, rounds, usual = 1, _FEW - 1, min  # of so few a busy moment would be the median; the first counts, too
    else:
        found = [[] for _ in programs]
    for _ in range(rounds):
        for i, program in enumerate(programs):
            runs = [[us for _, us in program.time(inputs)] for _ in range(tries)]
            found[i].append([min(values) for values in zip(*runs, strict=True)])
    times: list[dict[str, float]] = []
    for program, values in zip(programs, found, strict=True):
        middle = [usual(several) for several in zip(*values, strict=True)]
        sums: dict[str, float] = {}
        for name, us in zip(program.names, middle, strict=True):
            sums[name] = sums.get(name, 0.0) + us
        times.append(sums)
    return times


def _dense_times(graph: Graph, inputs: list[Tensor], known: list[dict[str, float]]) -> dict[str, float]:
    """Output of a layer -> microseconds in torch, in its place: of the known rounds, or of new ones."""
    rounds, usual = (known, min) if known else ([_dense_round(graph, inputs) for _ in range(_ROUNDS)], median)
    return {name: usual([times[name] for times in rounds]) for name in rounds[0]}


def _dense_round(graph: Graph, inputs: list[Tensor]) -> dict[str, float]:
    times: dict[str, float] = {}
    reference(graph, inputs, times)
    return times


def interleaved(calls: list[Callable[[], object]], seconds: float = 0.5) -> list[float]:
    """Microseconds of each call, in rounds in which they take turns, in blocks of about a millisecond.

    The median; of slow calls the least of two to five: those that lose clearly are not called again.
    """
    found = [[_seconds(call), _seconds(call)] for call in calls]
    if sum(map(min, found)) * 1e6 > _SLOW * len(calls):
        for _ in range(_FEW):
            best = min(map(min, found))
            close = [i for i, times in enumerate(found) if min(times) < _LOST * best]
            for i in close if len(close) > 1 else ():
                found[i].append(_seconds(calls[i]))
        return [1e6 * min(times) for times in found]
    repeats = [max(1, min(1000, int(1e-3 / max(times[1], 1e-7)))) for times in found]
    found = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(found[0]) < 5 or (time.perf_counter() < end and len(found[0]) < 51):
        for i, call in enumerate(calls):
            found[i].append(_seconds(call, repeats[i]))
    return [1e6 * median(times) for times in found]


def _seconds(call: Callable[[], object], repeats: int = 1) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats
