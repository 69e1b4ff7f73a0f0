"""Which operators run in one program: maximal connected sets that no path leaves and enters again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from secateur.deploy.pack.operators import Meaning, meaning, sample_shape
from secateur.runtime.build import runs

__all__ = ["Region", "find_regions", "leads_of"]


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes of the exported graph that one program computes, in their order.

    Attributes:
        meanings: node -> what it is to the runtime.
        leads: node -> axes before those of a sample.
        inputs: nodes outside that it reads.
        outputs: nodes of it that others read.
    """

    meanings: dict[fx.Node, Meaning]
    leads: dict[fx.Node, int]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


class _Growing:
    """Regions while they grow; `outside[n]`: regions from which a path leads to n through a node that is not theirs."""

    def __init__(self) -> None:
        self.region: dict[fx.Node, int] = {}
        self.outside: dict[fx.Node, set[int]] = {}
        self._beyond: dict[int, set[int]] = {}  # region -> the union of `outside` over its members
        self._parent: dict[int, int] = {}

    def find(self, region: int) -> int:
        while self._parent[region] != region:
            region = self._parent[region]
        return region

    def of(self, node: fx.Node) -> int | None:
        return self.find(self.region[node]) if node in self.region else None

    def visit(self, node: fx.Node, joins: list[fx.Node] | None) -> None:
        """Take a node in, with the regions of ``joins``; None: it stays outside."""
        before = self._before(node)
        if joins is None:
            self.outside[node] = before | {r for r in map(self.of, node.all_input_nodes) if r is not None}
            return
        mine = len(self._parent)
        self._parent[mine], self._beyond[mine] = mine, set(before)
        self.region[node] = mine
        for other in dict.fromkeys(self.of(source) for source in joins):
            assert other is not None
            if mine not in self._found(self._beyond[other]) and other not in self._found(self._beyond[mine]):
                self._parent[other] = mine
                self._beyond[mine] |= self._beyond[other]
        self.outside[node] = before | {
            r for r in map(self.of, node.all_input_nodes) if r is not None and r != self.find(mine)
        }
        self._beyond[mine] |= self.outside[node]

    def fold(self, node: fx.Node) -> None:
        """A node that was left outside belongs to what reads it after all."""
        self.outside[node] = self._before(node)

    def _before(self, node: fx.Node) -> set[int]:
        found: set[int] = set()
        for source in node.all_input_nodes:
            found |= self._found(self.outside[source])
        return found

    def _found(self, regions: set[int]) -> set[int]:
        return {self.find(region) for region in regions}


def find_regions(module: fx.GraphModule) -> list[Region]:
    """All regions that have a layer with a weight, dense ones too: a program may be faster than its layers one by one.

    Args:
        module: from `capture`.

    Returns:
        The regions, in the order of their first nodes.
    """
    meanings: dict[fx.Node, Meaning] = {}
    leads: dict[fx.Node, int] = {}
    readers: dict[tuple[fx.Node, int], list[fx.Node]] = {}  # of values from outside
    growing = _Growing()
    inner = _insides(module)
    for node in module.graph.nodes:
        if node in inner:  # the batch norm behind the getitem that stands for it
            growing.visit(node, None)
            continue
        found = meaning(module, node)
        lead = None if found is None else _lead(found, leads)
        if found is None or lead is None or not _fits(node, found, lead, meanings):
            growing.visit(node, None)
            continue
        meanings[node], leads[node] = found, lead
        for hidden in found.through:
            growing.fold(hidden)
        read = _read_lead(found, lead)
        joins = [source for source in found.values if leads.get(source) == read]
        for value in found.values:
            if value not in joins:  # layers that read the same value from outside share its conversion
                others = readers.setdefault((value, read), [])
                joins += others[:1]
                others.append(node)
        growing.visit(node, joins)
    groups: dict[int, list[fx.Node]] = {}
    for node in growing.region:
        groups.setdefault(growing.find(growing.region[node]), []).append(node)
    return [_region(nodes, meanings, leads) for nodes in groups.values() if _has_layers(nodes, meanings)]


def _insides(module: fx.GraphModule) -> set[fx.Node]:
    aten = torch.ops.aten
    return {n for n in module.graph.nodes if n.target is aten._native_batch_norm_legit_no_training.default}


def _lead(found: Meaning, leads: dict[fx.Node, int]) -> int | None:
    if found.lead is not None:
        return found.lead
    known = {leads[value] for value in found.values if value in leads}
    return known.pop() if len(known) == 1 else None


def _read_lead(found: Meaning, lead: int) -> int:
    return 1 if found.kind == "flatten" else lead


def _fits(node: fx.Node, found: Meaning, lead: int, meanings: dict[fx.Node, Meaning]) -> bool:
    """Whether the runtime has this node in this place."""
    if sample_shape(node, lead) is None or any(sample_shape(v, _read_lead(found, lead)) is None for v in found.values):
        return False
    if found.kind == "norm":
        conv = found.values[0]
        (norm,) = found.through
        return conv in meanings and meanings[conv].kind == "conv" and len(conv.users) == len(norm.users) == 1
    return found.kind in {"activation", "same"} or runs(found.kind)


def _has_layers(nodes: list[fx.Node], meanings: dict[fx.Node, Meaning]) -> bool:
    layers = [meanings[node].numbers for node in nodes]
    return any("weight" in layer and not layer.get("fixed") for layer in layers)


def _region(nodes: list[fx.Node], meanings: dict[fx.Node, Meaning], leads: dict[fx.Node, int]) -> Region:
    inside = set(nodes)
    reads = [value for node in nodes for value in meanings[node].values if value not in inside]
    hidden = {passed for node in nodes for passed in meanings[node].through}
    outputs = [node for node in nodes if any(user not in inside and user not in hidden for user in node.users)]
    return Region(
        {node: meanings[node] for node in nodes},
        {node: leads[node] for node in nodes},
        tuple(dict.fromkeys(reads)),
        tuple(outputs),
    )


def leads_of(region: Region) -> tuple[int, ...]:
    """Axes before those of a sample, per input, as its first reader sees it."""
    found: list[int] = []
    for value in region.inputs:
        reader = next(node for node, meaning in region.meanings.items() if value in meaning.values)
        found.append(1 if region.meanings[reader].kind == "flatten" else region.leads[reader])
    return tuple(found)
