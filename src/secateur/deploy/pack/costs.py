"""What every layer would cost at every sparsity, measured on this machine before anything is pruned."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.deploy.pack.capture import capture, example_of
from secateur.deploy.pack.lowering import lower
from secateur.deploy.pack.regions import Region, find_regions, leads_of
from secateur.model.quietly import quietly
from secateur.runtime.choose import choose, interleaved
from secateur.runtime.geometry import is_image
from secateur.runtime.graph import Graph, Node, reference
from secateur.runtime.program import lanes_of

__all__ = ["CostTable", "LayerCost", "cost_table"]

SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
UNITS = {"weight": 1, "block(4, 1)": 4}
"""Unit -> outputs that go together."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer.

    Attributes:
        name: of the layer.
        weights: how many it has.
        dense_us: microseconds in torch.
        us: unit -> microseconds at each sparsity of the table.
    """

    name: str
    weights: int
    dense_us: float
    us: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class CostTable:
    """Microseconds of a model's layers over sparsity, and of all that has no weights.

    Attributes:
        sparsities: ascending, from 0.
        layers: in the order in which they run.
        other_us: what runs besides: conversions, pools, sums, torch.
        dense_us: the dense model in torch.
        samples: rows of the example.
    """

    sparsities: tuple[float, ...]
    layers: tuple[LayerCost, ...]
    other_us: float
    dense_us: float
    samples: int

    def predict(self, name: str, sparsity: float, unit: str = "weight") -> float:
        """Microseconds of one layer: a straight line between the sparsities that were measured.

        Args:
            name: of the layer.
            sparsity: from 0 to 1.
            unit: ``weight`` or ``block(4, 1)``.

        Raises:
            ValueError: no such layer or unit, or a sparsity out of range.
        """
        layer = next((layer for layer in self.layers if layer.name == name), None)
        if layer is None:
            raise ValueError(f"layer {name!r}: the table has {', '.join(layer.name for layer in self.layers)}")
        if unit not in layer.us:
            raise ValueError(f"unit {unit!r}: the table has {', '.join(layer.us)} for layer {name!r}")
        if not 0 <= sparsity <= 1:
            raise ValueError(f"sparsity={sparsity}: expected a share from 0 to 1")
        times, grid = layer.us[unit], self.sparsities
        after = next((i for i, point in enumerate(grid) if point >= sparsity), len(grid) - 1)
        before = max(after - 1, 0)
        if after == before or sparsity >= grid[-1]:
            return times[after]
        share = (sparsity - grid[before]) / (grid[after] - grid[before])
        return times[before] + share * (times[after] - times[before])

    def total(self, sparsity: float | Mapping[str, float], unit: str = "weight") -> float:
        """Milliseconds of the whole model.

        Args:
            sparsity: of all layers, or layer -> sparsity; layers that are not named are dense.
            unit: as for `predict`.
        """
        each = sparsity if isinstance(sparsity, Mapping) else {layer.name: sparsity for layer in self.layers}
        unknown = set(each) - {layer.name for layer in self.layers}
        if unknown:
            raise ValueError(f"layer {sorted(unknown)[0]!r}: the table has {', '.join(la.name for la in self.layers)}")
        us = sum(self.predict(layer.name, each.get(layer.name, 0.0), unit) for layer in self.layers)
        return (us + self.other_us) / 1e3

    def sparsity_for(self, milliseconds: float, unit: str = "weight") -> float:
        """The least sparsity, the same in all layers, at which the model should take no longer.

        Raises:
            ValueError: the sparsest point of the table takes longer.
        """
        most = self.sparsities[-1]
        if self.total(most, unit) > milliseconds:
            raise ValueError(
                f"{milliseconds} ms is out of reach: {self.total(most, unit):.3g} ms at {most:.0%} zeros in units "
                f"{unit!r}; remove channels (sc.shrink) or prune in blocks"
            )
        low, high = 0.0, most
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.total(middle, unit) <= milliseconds else (middle, high)
        return high

    def to_json(self, path: str | Path | None = None) -> str:
        """The table as data; written to ``path`` if one is given."""
        text = json.dumps(asdict(self), indent=1)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, text: str) -> CostTable:
        """The inverse of `to_json`."""
        found = json.loads(text)
        layers = tuple(
            LayerCost(la["name"], la["weights"], la["dense_us"], {u: tuple(t) for u, t in la["us"].items()})
            for la in found["layers"]
        )
        return cls(tuple(found["sparsities"]), layers, found["other_us"], found["dense_us"], found["samples"])

    def __str__(self) -> str:
        width = max([5, *(len(layer.name) for layer in self.layers)])
        lines = [f"{'layer':{width}}  {'unit':11}  dense us " + "".join(f"{s:>9.0%}" for s in self.sparsities)]
        for layer in self.layers:
            for unit, times in layer.us.items():
                cells = "".join(f"{us:9.1f}" for us in times)
                lines.append(f"{layer.name:{width}}  {unit:11}  {layer.dense_us:8.1f} {cells}")
        for unit in UNITS:
            if all(unit in layer.us for layer in self.layers):
                cells = "".join(f"{1e3 * self.total(s, unit):9.1f}" for s in self.sparsities)
                lines.append(f"{'all':{width}}  {unit:11}  {self.dense_us:8.1f} {cells}")
        return "\n".join(lines)


def cost_table(
    model: nn.Module,
    example_inputs: Any,
    units: Sequence[str] = ("weight",),
    sparsities: Sequence[float] = SPARSITIES,
) -> CostTable:
    """Measure what a model's layers would cost with zeros in random places, before it is pruned.

    Time depends on where the zeros are hardly at all, so the table holds for any criterion. One thread.

    Args:
        model: on the CPU in float32; not changed.
        example_inputs: as for `pack`.
        units: ``weight``, ``block(4, 1)``.
        sparsities: that are measured, ascending from 0.

    Returns:
        The table: `CostTable.predict`, `CostTable.total`, `CostTable.sparsity_for` milliseconds.

    Raises:
        ValueError: an unknown unit, sparsities that do not rise from 0, or a model that `pack` would refuse.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).eval()
        >>> table = cost_table(net, torch.randn(1, 64), sparsities=(0.0, 0.9))
        >>> [layer.name for layer in table.layers], table.total(0.9) > 0
        (['0', '2'], True)
    """
    unknown = set(units) - set(UNITS)
    if unknown or not units:
        raise ValueError(f"units={list(units)}: allowed are {', '.join(map(repr, UNITS))}")
    if list(sparsities) != sorted(set(sparsities)) or not sparsities or sparsities[0] != 0 or sparsities[-1] > 1:
        raise ValueError(f"sparsities={list(sparsities)}: expected shares that rise from 0 and end at 1 or before")
    example = example_of(example_inputs)
    module = capture(model, example)
    arguments, keywords = example
    values = [value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)]
    regions = [(lower(region), _rows(region, len(values[0]))) for region in find_regions(module)]
    graphs = [graph for graph, _ in regions]
    with quietly(model), torch.no_grad():
        (dense_us,) = interleaved([lambda: model(*arguments, **keywords)])
    layers: dict[str, dict[str, list[float]]] = {}
    dense: dict[str, float] = {}
    others: list[float] = []
    for graph, rows in regions:
        _measure(graph, rows, units, sparsities, layers, dense, others)
    sizes = {node.name: node.weight.numel() for graph in graphs for node in graph.nodes if node.weight is not None}
    found = tuple(
        LayerCost(name, sizes[name], dense[name], {unit: tuple(times) for unit, times in by_unit.items()})
        for name, by_unit in layers.items()
    )
    # What torch does between programs; a single program is taken to be the whole model.
    outside = dense_us - sum(dense.values()) if len(graphs) > 1 else 0.0
    return CostTable(tuple(sparsities), found, sum(others) + max(outside, 0.0), dense_us, len(values[0]))


def _rows(region: Region, samples: int) -> int:
    """Samples of a program: places of a sequence count. Export saw two where the example has one."""
    shape = region.inputs[0].meta["val"].shape[: leads_of(region)[0]]
    lengths = [int(n.node.hint) if isinstance(n, torch.SymInt) else n for n in shape]
    return max(math.prod(lengths) // (2 if samples == 1 else 1), 1)


def _measure(
    graph: Graph,
    samples: int,
    units: Sequence[str],
    sparsities: Sequence[float],
    layers: dict[str, dict[str, list[float]]],
    dense: dict[str, float],
    others: list[float],
) -> None:
    """One program at every sparsity and unit."""
    image = any(is_image(graph, value) for value in graph.shapes)
    lanes = 1 if image else lanes_of(samples)
    inputs = [torch.randn(samples, *graph.shapes[name]) for name in graph.inputs]
    fixed = {node.name for node in graph.nodes if node.fixed}
    rest: list[float] = []
    with torch.no_grad():
        reference(graph, inputs)
        for unit in units:
            for sparsity in sparsities:
                chosen = choose(_with_zeros(graph, sparsity, UNITS[unit]), inputs, lanes)
                rest.append(chosen.other_us + sum(layer.us for layer in chosen.layers if layer.name in fixed))
                for layer in chosen.layers:
                    if layer.name in fixed:
                        continue
                    layers.setdefault(layer.name, {}).setdefault(unit, []).append(min(layer.us, layer.dense_us))
                    dense[layer.name] = layer.dense_us
    others.append(sorted(rest)[len(rest) // 2])


def _with_zeros(graph: Graph, sparsity: float, height: int) -> Graph:
    """The graph with random zeros in every weight, ``height`` neighbouring outputs together."""
    generator = torch.Generator().manual_seed(0)

    def zeroed(node: Node) -> Node:
        if node.weight is None or node.fixed:
            return node
        rows = -(-len(node.weight) // height)
        kept = torch.rand(rows, *node.weight.shape[1:], generator=generator) >= sparsity
        weight = torch.where(node.weight == 0, 1.0, node.weight)  # what was pruned before counts as there
        return replace(node, weight=weight * kept.repeat_interleave(height, 0)[: len(weight)])

    return replace(graph, nodes=tuple(zeroed(node) for node in graph.nodes))
