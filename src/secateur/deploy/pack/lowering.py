"""A region of torch's operators as a graph of the runtime: batch norms folded, sums and activations fused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from secateur.deploy.pack.operators import Meaning, sample_shape
from secateur.deploy.pack.regions import Region
from secateur.runtime.graph import WEIGHTED, Graph, Node

__all__ = ["lower"]


def lower(region: Region) -> Graph:
    """The graph that a program is built from.

    Args:
        region: from `find_regions`.

    Returns:
        The same function, with inputs and outputs in the order of the region's.
    """
    return _Lowering(region).finish()


class _Lowering:
    def __init__(self, region: Region) -> None:
        self.region = region
        self._nodes: list[Node] = []
        self._names: dict[fx.Node, str] = {node: node.name for node in region.inputs}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._kept = set(region.outputs)

    def finish(self) -> Graph:
        region = self.region
        for node, found in region.meanings.items():
            for value in found.values:
                if value not in region.meanings:
                    lead = 1 if found.kind == "flatten" else region.leads[node]
                    self._shapes[value.name] = _known(value, lead)
            self._shapes[node.name] = _known(node, region.leads[node])
            self._names[node] = self._take(node, found)
        outputs = tuple(self._names[node] for node in region.outputs)
        used = {name for node in self._nodes for name in (*node.inputs, node.output)}
        shapes = {name: shape for name, shape in self._shapes.items() if name in used}
        return Graph(tuple(self._nodes), shapes, tuple(node.name for node in region.inputs), outputs)

    def _take(self, node: fx.Node, found: Meaning) -> str:
        """Add what a node does; returns the name of the value that holds its result."""
        reads = tuple(self._names[value] for value in found.values)
        numbers = found.numbers
        match found.kind:
            case "same":
                return reads[0]
            case "norm":
                return self._fold(reads[0], numbers["scale"], numbers["shift"])
            case "activation":
                return self._activate(node, reads[0], numbers["activation"])
            case "add":
                return self._add(node, reads)
            case _:
                fields = {k: _taken(v) for k, v in numbers.items() if k != "parameter"}
                name = numbers.get("parameter", node.name).removesuffix(".weight")
                self._nodes.append(Node(kind=found.kind, output=node.name, inputs=reads, name=name, **fields))
                return node.name

    def _maker(self, name: str) -> int | None:
        return next((i for i, node in enumerate(self._nodes) if node.output == name), None)

    def _open(self, reader: fx.Node, name: str) -> int | None:
        """The node that made a value, if only ``reader`` still wants it: then more can be fused to it."""
        alike = {node for node, held in self._names.items() if held == name}
        folded = {passed for found in self.region.meanings.values() for passed in found.through}
        others = {user for node in alike for user in node.users} - alike - folded - {reader}
        return None if others or alike & self._kept or alike - set(self.region.meanings) else self._maker(name)

    def _fold(self, name: str, scale: Tensor, shift: Tensor) -> str:
        place = self._maker(name)
        assert place is not None
        node = self._nodes[place]
        assert node.weight is not None
        weight = (node.weight.double() * scale[:, None, None, None]).float()
        bias = shift if node.bias is None else node.bias.double() * scale + shift
        self._nodes[place] = replace(node, weight=weight, bias=bias.float())
        return name

    def _activate(self, node: fx.Node, name: str, activation: str) -> str:
        place = self._open(node, name)
        if (
            place is not None
            and self._nodes[place].activation is None
            and self._nodes[place].kind in WEIGHTED | {"add"}
        ):
            self._nodes[place] = replace(self._nodes[place], activation=activation)
            return name
        self._nodes.append(Node(kind="add", output=node.name, inputs=(name,), name=node.name, activation=activation))
        return node.name

    def _add(self, node: fx.Node, reads: tuple[str, ...]) -> str:
        """The later of two layers takes the other one's result as its residual."""
        makers = [self._open(node, name) for name in reads]
        order = sorted(range(2), key=lambda i: makers[i] or 0, reverse=True)
        for i in order:
            place, other = makers[i], self._maker(reads[1 - i])
            if place is None or reads[0] == reads[1]:
                continue
            layer = self._nodes[place]
            if (
                layer.kind in WEIGHTED
                and not layer.residual
                and layer.activation is None
                and (other is None or other < place)
            ):
                self._nodes[place] = replace(layer, inputs=(*layer.inputs, reads[1 - i]), residual=True)
                return reads[i]
        self._nodes.append(Node(kind="add", output=node.name, inputs=reads, name=node.name, residual=True))
        return node.name


def _known(node: fx.Node, lead: int) -> tuple[int, ...]:
    shape = sample_shape(node, lead)
    assert shape is not None
    return shape


def _taken(value: Any) -> Any:
    """Tensors without gradients, of our own: later changes of the model are not ours to see."""
    return value.detach().clone() if isinstance(value, Tensor) else value
