"""What the latency page shows: packed models layer by layer, and races of runtimes, grouped by model and checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from secateur.records import Environment, Explanation, LayerLine, Rivals
from secateur.report.speed_check import Speed, check_speed

__all__ = ["HALF", "Model", "lost_us", "models", "setting", "slow_layers"]

HALF = 0.5
"""The share of its roof below which a layer is named."""


@dataclass
class Model:
    """All that is known of the speed of one model."""

    name: str
    explained: list[Explanation] = field(default_factory=list)
    rivals: list[Rivals] = field(default_factory=list)

    @property
    def environments(self) -> list[Environment]:
        """The machines that its numbers come from, each once; threads stand with the numbers."""
        found = [one.environment for one in (*self.explained, *self.rivals) if one.environment is not None]
        return list(dict.fromkeys(found))


def models(speed: Iterable[Speed]) -> list[Model]:
    """Records with the same title are of the same model; one without joins the only other one.

    Raises:
        ValueError: something that is neither record, or whose numbers cannot be.
    """
    records = list(speed)
    for record in records:
        check_speed(record)
    titles = list(dict.fromkeys(record.title for record in records if record.title))
    rest = titles[0] if len(titles) == 1 else "packed model"
    found: dict[str, Model] = {}
    for record in records:
        name = record.title or rest
        model = found.setdefault(name, Model(name))
        if isinstance(record, Explanation):
            model.explained.append(record)
        else:
            model.rivals.append(record)
    return list(found.values())


def setting(record: Speed) -> str:
    """``batch 1, 2 threads``."""
    batch = record.batch if isinstance(record, Rivals) else record.samples
    threads = f"{record.threads} thread{'' if record.threads == 1 else 's'}"
    return f"batch {batch}, {threads}" if batch else threads


def slow_layers(found: Explanation) -> list[tuple[LayerLine, float]]:
    """Layers of programs that reach less than half of their roof, with that share; the most time to win first."""
    shares = [(line, _share(found, line)) for line in found.layers if line.program is not None]
    slow = [(line, share) for line, share in shares if share is not None and share < HALF]
    return sorted(slow, key=lambda pair: -lost_us(*pair))


def lost_us(line: LayerLine, share: float) -> float:
    """Microseconds that the layer would save at its roof."""
    return line.us * (1 - share)


def _share(found: Explanation, line: LayerLine) -> float | None:
    roof = found.roof_of(line)
    return line.gflops / roof if roof else None
