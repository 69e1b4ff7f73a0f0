"""A small network for layers in words (pairs in bf16, quads in int8), and what it computes, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.runtime import Packed, Pieces, pack
from secateur.runtime.graph import Graph, Node
from tests.runtime.oracle import activated

Mask = Callable[[int, int], Tensor]
Product = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[np.ndarray, ...]]


def layer(mask: Mask, number: int, rows: int, cols: int, **more: Any) -> Node:
    torch.manual_seed(number)
    weight = torch.randn(rows, cols) * mask(rows, cols) / cols**0.5
    fields: dict[str, Any] = {"inputs": (f"v{number}",), "output": f"v{number + 1}", "bias": torch.randn(rows)} | more
    return Node(kind="linear", name=f"layer{number}", weight=weight, **fields)


def network(mask: Mask) -> Graph:
    """An input with two readers in words, a residual, a value that is read in both formats and leaves."""
    nodes = (
        layer(mask, 0, 101, 193, activation="relu"),
        layer(mask, 1, 101, 193, inputs=("v0",)),
        Node(kind="add", name="sum", inputs=("v1", "v2"), output="v3", residual=True),
        layer(mask, 3, 101, 101, inputs=("v3", "v1"), residual=True, activation="gelu"),
        layer(mask, 4, 300, 101, inputs=("v3",), output="v5"),
        layer(mask, 5, 7, 300),
    )
    shapes = {"v0": (193,), "v1": (101,), "v2": (101,), "v3": (101,), "v4": (101,), "v5": (300,), "v6": (7,)}
    return Graph(nodes, shapes, ("v0",), ("v6", "v3", "v4"))


def step_by_step(graph: Graph, x: Tensor, product: Product) -> dict[str, np.ndarray]:
    """Every value, each layer by the oracle of its format."""
    values = {"v0": x.double().numpy()}
    for node in graph.nodes:
        first = torch.from_numpy(values[node.inputs[0]]).float()
        y = values[node.inputs[0]]
        if node.weight is not None:
            y = product(first, node.weight, node.weight != 0, node.bias)[0]
        y = y + values[node.inputs[-1]] if node.residual else y
        values[node.output] = activated(y, node.activation)
    return values


def packed_as(graph: Graph, layouts: tuple[str, ...], pieces: Pieces | None = None) -> dict[str, Packed]:
    """The layers' weights in these layouts, in turns."""
    return {
        node.output: pack(node.weight, layout=layouts[i % len(layouts)], pieces=pieces)
        for i, node in enumerate(graph.nodes)
        if node.weight is not None
    }
