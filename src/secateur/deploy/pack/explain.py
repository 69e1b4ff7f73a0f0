"""What `fast.explain()` says: a line per layer, the sum, and the whole model beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from secateur.deploy.pack.region import RegionModule
from secateur.runtime.candidates import pattern_of
from secateur.runtime.choose import Chosen

__all__ = ["Explanation", "LayerLine", "explained"]


@dataclass(frozen=True, slots=True)
class LayerLine:
    """One layer. Times are in microseconds, of all samples of the example.

    Attributes:
        name: of the layer.
        sparsity: share of zeros.
        pattern: of the zeros.
        layout: that it runs with.
        dense_us: in torch, with bias and activation.
        us: in the program.
        program: number of the program that it runs in; None: torch runs it.
    """

    name: str
    sparsity: float
    pattern: str
    layout: str
    dense_us: float
    us: float
    program: int | None

    @property
    def gain(self) -> float:
        """Dense time over this time."""
        return self.dense_us / self.us


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where the time of a packed model goes.

    Attributes:
        layers: every layer that the runtime knows, in the order in which they run.
        other_us: conversions, sums and pools inside the programs.
        us: the packed model, measured as a whole.
        dense_us: the dense model in torch, measured beside it.
        reason: why the model stays dense; empty where it does not.
    """

    layers: tuple[LayerLine, ...]
    other_us: float
    us: float
    dense_us: float
    reason: str = ""

    @property
    def programs_us(self) -> float:
        """The sum of the lines and of what lies between them."""
        return sum(line.us for line in self.layers) + self.other_us

    @property
    def gain(self) -> float:
        """The dense model's time over this one's."""
        return self.dense_us / self.us if self.us else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self) | {"gain": self.gain, "programs_us": self.programs_us}

    def __str__(self) -> str:
        if not self.layers:
            return f"no gain: stay dense; {self.reason}"
        width = max(len(line.name) for line in (*self.layers, _LONGEST))
        rows = [f"{'layer':{width}}  zeros  pattern       kernel            dense us  sparse us   gain"]
        rows += [_row(line, width) for line in self.layers]
        rows.append(f"{'conversions, sums':{width}}  {'':37}  {'':>8}  {self.other_us:9.1f}")
        rest = self.us - self.programs_us
        rows.append(f"{'torch and Python':{width}}  {'':37}  {'':>8}  {rest:9.1f}")
        rows.append(f"{'whole model':{width}}  {'':37}  {self.dense_us:8.1f}  {self.us:9.1f}  {self.gain:5.2f}")
        if self.reason:
            rows.append(f"no gain: stay dense; {self.reason}")
        return "\n".join(rows)


_LONGEST = LayerLine("conversions, sums", 0, "", "", 0, 1, None)


def _row(line: LayerLine, width: int) -> str:
    return (
        f"{line.name:{width}}  {line.sparsity:5.1%}  {line.pattern:12}  {line.layout:16}  {line.dense_us:8.1f}  "
        f"{line.us:9.1f}  {line.gain:5.2f}"
    )


def explained(regions: list[RegionModule], us: float, dense_us: float) -> Explanation:
    """The lines of all programs, as they were decided first."""
    lines: list[LayerLine] = []
    other = 0.0
    for number, region in enumerate(regions):
        chosen = next(iter(region.chosen.values()))
        lines += _lines(region, chosen, number)
        other += chosen.other_us if chosen.wins else chosen.dense_us - sum(layer.dense_us for layer in chosen.layers)
    reason = "" if us < dense_us else "the packed model was not faster than torch here"
    return Explanation(tuple(lines), other, us, dense_us, reason)


def _lines(region: RegionModule, chosen: Chosen, number: int) -> list[LayerLine]:
    nodes = [node for node in region.graph.nodes if node.weight is not None]
    found: list[LayerLine] = []
    for node, layer in zip(nodes, chosen.layers, strict=True):
        assert node.weight is not None
        layout, us = (layer.layout, layer.us) if chosen.wins else ("torch", layer.dense_us)
        found.append(
            LayerLine(
                node.name, node.sparsity, pattern_of(node.weight), layout, layer.dense_us, us,
                number if chosen.wins else None,
            )
        )  # fmt: skip
    return found
