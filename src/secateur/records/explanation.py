"""What `sc.pack` measured: a line per layer, the sum, the whole model beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.records.base import Jsonable
from secateur.records.measured import Environment
from secateur.records.roofs import Roofs

__all__ = ["Explanation", "LayerLine"]


@dataclass(frozen=True)
class LayerLine(Jsonable):
    """One layer. Times are in microseconds, of all samples of the measurement, on one thread.

    Attributes:
        name: of the layer.
        sparsity: share of zeros.
        pattern: of the zeros.
        layout: that it runs with.
        dense_us: in torch, with bias and activation.
        us: in the program.
        program: number of the program that it runs in; None: torch runs it.
        flops: operations on weights that are not 0, two per multiply-add, of all samples; those of a convolution that
            meet its padding count.
        dense_flops: the same on all weights.
        weight_bytes: the weight as it is packed; dense float32 where torch runs it.
        input_bytes: what it reads: its input, and the residual where it adds one.
        output_bytes: what it writes.
    """

    name: str
    sparsity: float
    pattern: str
    layout: str
    dense_us: float
    us: float
    program: int | None
    flops: int
    dense_flops: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int

    @property
    def gain(self) -> float:
        """Dense time over this time."""
        return self.dense_us / self.us

    @property
    def moved_bytes(self) -> int:
        """The least that must move: packed weight, input and output, each once."""
        return self.weight_bytes + self.input_bytes + self.output_bytes

    @property
    def intensity(self) -> float:
        """Operations on weights that are not 0, per byte that must move."""
        return self.flops / max(self.moved_bytes, 1)

    @property
    def gflops(self) -> float:
        """Operations on weights that are not 0, in 10^9 per second."""
        return self.flops / self.us / 1e3

    @property
    def in_bf16(self) -> bool:
        """Whether it multiplies pairs of bf16."""
        return self.layout.endswith("-bf16")


@dataclass(frozen=True)
class Explanation(Jsonable):
    """Where the time of a packed model goes.

    Attributes:
        layers: every layer that the runtime knows, in the order in which they run.
        other_us: conversions, sums and pools inside the programs.
        us: the packed model, measured as a whole.
        dense_us: the dense model in torch, measured beside it.
        reason: why the model stays dense; empty where it does not.
        samples: of the measurement.
        threads: that the model as a whole may use; layers are timed on one.
        roofs: what one core of the machine reaches at most; None: not measured.
        no_roofs: why they could not be measured; empty where they are, or nobody asked.
        title: what was packed.
        environment: where.
    """

    layers: tuple[LayerLine, ...]
    other_us: float
    us: float
    dense_us: float
    reason: str = ""
    samples: int = 0
    threads: int = 1
    roofs: Roofs | None = None
    no_roofs: str = ""
    title: str = ""
    environment: Environment | None = None

    @property
    def programs_us(self) -> float:
        """The sum of the lines and of what lies between them."""
        return sum(line.us for line in self.layers) + self.other_us

    @property
    def gain(self) -> float:
        """The dense model's time over this one's."""
        return self.dense_us / self.us if self.us else 1.0

    @property
    def working_bytes(self) -> int:
        """What every call uses again: all packed weights, and the largest input and output of a layer."""
        largest = max((line.input_bytes + line.output_bytes for line in self.layers), default=0)
        return sum(line.weight_bytes for line in self.layers) + largest

    def roof_of(self, line: LayerLine) -> float | None:
        """Most operations per second, in 10^9, that one core could do in this layer; None where no roofs are known."""
        return None if self.roofs is None else self.roofs.at(line.intensity, self.working_bytes, line.in_bf16)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings: the record, and what follows from it."""
        return self.to_record() | {"gain": self.gain, "programs_us": self.programs_us}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Explanation:
        """The inverse of ``to_record`` and of ``to_dict``.

        Raises:
            ValueError: for keys that this record does not have, or that are missing and have no default.
        """
        return super().from_record({key: record[key] for key in record if key not in {"gain", "programs_us"}})

    def __str__(self) -> str:
        if not self.layers:
            return f"no gain: stay dense; {self.reason}"
        width = max(len("conversions, sums"), *(len(line.name) for line in self.layers))
        rows = [f"{'layer':{width}}  zeros  pattern       kernel            dense us  sparse us   gain  GFLOP/s"]
        rows += [_row(line, width) for line in self.layers]
        rows.append(f"{'conversions, sums':{width}}  {'':37}  {'':>8}  {self.other_us:9.1f}")
        rest = self.us - self.programs_us
        rows.append(f"{'torch and Python':{width}}  {'':37}  {'':>8}  {rest:9.1f}")
        rows.append(f"{'whole model':{width}}  {'':37}  {self.dense_us:8.1f}  {self.us:9.1f}  {self.gain:5.2f}")
        rows.append("GFLOP/s: on weights that are not 0")
        if self.reason:
            rows.append(f"no gain: stay dense; {self.reason}")
        return "\n".join(rows)


def _row(line: LayerLine, width: int) -> str:
    return (
        f"{line.name:{width}}  {line.sparsity:5.1%}  {line.pattern:12}  {line.layout:16}  {line.dense_us:8.1f}  "
        f"{line.us:9.1f}  {line.gain:5.2f}  {line.gflops:7.1f}"
    )
