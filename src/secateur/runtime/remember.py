"""What was chosen for a graph, as plain JSON, and the program that is made of it again without a measurement."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from secateur.runtime.cache import Entry
from secateur.runtime.candidates import pattern_of
from secateur.runtime.choose import BACKENDS, Chosen, LayerTime, fits, pack_layer, share
from secateur.runtime.convolution import PackedConv
from secateur.runtime.depthwise import PackedDepthwise
from secateur.runtime.formats import Packed
from secateur.runtime.graph import Graph, Node
from secateur.runtime.program import LANES, Program

__all__ = ["Packing", "entry_of", "rebuild", "structure"]

Packing: TypeAlias = Callable[[Graph, Node, str, int], Packed | PackedConv | PackedDepthwise]
"""(graph, node, layout, threads) -> the packed weight of the node: `pack_layer`, or what a file brought along."""

_OTHERWISE = {"output", "inputs", "name", "weight", "bias", "scale", "eps"}
_NUMBERS = tuple(field.name for field in fields(Node) if field.name not in _OTHERWISE)


def structure(graph: Graph, samples: int, dtype: torch.dtype = torch.float32) -> str:
    """A digest of all that the times of a graph depend on: not of values or names.

    Args:
        graph: what is computed. Densities count by two digits.
        samples: class of sizes.
        dtype: in which layers may run.

    Returns:
        Hexadecimal digits.

    Example:
        >>> import torch
        >>> node = Node(kind="linear", output="y", inputs=("x",), weight=torch.eye(8))
        >>> other = Node(kind="linear", output="b", inputs=("a",), weight=2 * torch.eye(8))
        >>> first = Graph((node,), {"x": (8,), "y": (8,)}, ("x",), ("y",))
        >>> structure(first, 1) == structure(Graph((other,), {"a": (8,), "b": (8,)}, ("a",), ("b",)), 1)
        True
    """
    if graph not in _DIGESTS:
        _DIGESTS[graph] = _digest(graph)
    return hashlib.sha256(f"{_DIGESTS[graph]} {samples} {dtype}".encode()).hexdigest()


_DIGESTS: WeakKeyDictionary[Graph, str] = WeakKeyDictionary()  # every weight is read once


def _digest(graph: Graph) -> str:
    number = {name: i for i, name in enumerate((*graph.inputs, *(node.output for node in graph.nodes)))}
    table = {
        "inputs": [graph.shapes[name] for name in graph.inputs],
        "outputs": [number[name] for name in graph.outputs],
        "nodes": [_node(graph, node, number) for node in graph.nodes],
    }
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _node(graph: Graph, node: Node, number: dict[str, int]) -> dict[str, Any]:
    weight = node.weight
    return {
        "inputs": [number[name] for name in node.inputs],
        "shape": graph.shapes[node.output],
        "weight": None if weight is None else [*weight.shape],
        "density": None if weight is None else f"{1 - node.sparsity:.2g}",
        "pattern": None if weight is None else pattern_of(weight),
        "bias": node.bias is not None,
        **{name: getattr(node, name) for name in _NUMBERS},
    }


def _weighted(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.weight is not None]


def entry_of(graph: Graph, chosen: Chosen) -> Entry:
    """What `rebuild` needs."""
    return {
        "lanes": chosen.program.lanes,
        "backend": chosen.backend,
        "layouts": [chosen.layouts[node.output] for node in _weighted(graph)],
        "layers_us": [layer.us for layer in chosen.layers],
        "layers_dense_us": [layer.dense_us for layer in chosen.layers],
        "other_us": chosen.other_us,
        "us": chosen.us,
        "dense_us": chosen.dense_us,
        "samples": chosen.samples,
    }


def rebuild(
    graph: Graph,
    entry: Entry,
    inputs: list[Tensor],
    threads: int,
    packing: Packing = pack_layer,
    dtype: torch.dtype = torch.float32,
) -> Chosen | None:
    """Build what was chosen before; nothing is tried.

    Args:
        graph: of the structure that the choice was made for.
        entry: from `entry_of`, by way of a file that nobody vouches for.
        inputs: as of `choose`.
        threads: at most so many.
        packing: packs the weight of a node.
        dtype: as of `choose`.

    Returns:
        The program with the times of then; None if the choice does not fit.
    """
    nodes = _weighted(graph)
    if not _sound(entry, len(nodes)) or (threads == 1) > (entry["backend"] == "one"):
        return None
    lanes, backend = entry["lanes"], entry["backend"]
    layouts = {node.output: name for node, name in zip(nodes, entry["layouts"], strict=True)}
    if not fits(graph, layouts, lanes, dtype):
        return None
    cut_for = 1 if backend == "one" else threads
    packed = {node.output: packing(graph, node, layouts[node.output], cut_for) for node in nodes}
    if backend == "one":
        program = Program(graph, packed, lanes)
    else:
        program = share(graph, packed, lanes, threads, backend, inputs)
    layers = tuple(
        LayerTime(node.name, layout, us, dense_us, {layout: us}, packed[node.output].nbytes)
        for node, layout, us, dense_us in zip(
            nodes, entry["layouts"], entry["layers_us"], entry["layers_dense_us"], strict=True
        )
    )
    return Chosen(
        program, backend, layouts, layers, entry["other_us"], entry["us"], entry["dense_us"], entry["samples"]
    )


def _sound(entry: Entry, layers: int) -> bool:
    """Whether an entry has the parts of one, of the right types."""
    names, lists = ("other_us", "us", "dense_us"), ("layouts", "layers_us", "layers_dense_us")
    if not {"lanes", "backend", "samples", *names, *lists} <= set(entry):
        return False
    if not all(isinstance(entry[name], list) and len(entry[name]) == layers for name in lists):
        return False
    times = [*(entry[name] for name in names), *entry["layers_us"], *entry["layers_dense_us"]]
    return (
        entry["lanes"] in LANES
        and type(entry["lanes"]) is int
        and entry["backend"] in BACKENDS
        and type(entry["samples"]) is int
        and all(isinstance(name, str) for name in entry["layouts"])
        and all(type(us) in (int, float) and math.isfinite(us) for us in times)
    )
