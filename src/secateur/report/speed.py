"""What the latency page shows: packed models layer by layer, and races of runtimes, grouped by model and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from secateur.records import Environment, Explanation, LayerLine, Rivals

__all__ = ["HALF", "Model", "Speed", "check_speed", "lost_us", "models", "setting", "slow_layers"]

Speed: TypeAlias = Explanation | Rivals
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


def check_speed(record: Speed) -> None:
    """Refuse what no measurement can have said; JSON of anybody may be behind it.

    Raises:
        ValueError: naming the record, the place and the value.

    Example:
        >>> check_speed(Explanation((), 0.0, -1.0, 2.0))
        Traceback (most recent call last):
        ...
        ValueError: explanation '': us = -1.0: expected a number from 0 on
    """
    if isinstance(record, Explanation):
        _check_explanation(record)
    elif isinstance(record, Rivals):  # pyright: ignore[reportUnnecessaryIsInstance]
        for row in record.rows:
            if row.status == "timed":
                where = f"race {record.title!r}: runtime {row.name!r}"
                for name in ("median_ms", "p10_ms", "p90_ms"):
                    _number(where, name, getattr(row, name), positive=True)
    else:
        raise ValueError(f"speed: expected what explain() or secateur bench give, not {type(record).__name__}")


def _check_explanation(record: Explanation) -> None:
    where = f"explanation {record.title!r}"
    for name in ("us", "dense_us"):
        _number(where, name, getattr(record, name), positive=bool(record.layers))
    _number(where, "samples", record.samples)
    for line in record.layers:
        place = f"{where}: layer {line.name!r}"
        for name in ("us", "dense_us"):
            _number(place, name, getattr(line, name), positive=True)
        for name in ("sparsity", "flops", "dense_flops", "weight_bytes", "input_bytes", "output_bytes"):
            _number(place, name, getattr(line, name))
        if not all(isinstance(text, str) for text in (line.name, line.pattern, line.layout)):
            raise ValueError(f"{place}: name, pattern and layout are texts")
    if record.roofs is not None:
        if not record.roofs.bandwidths:
            raise ValueError(f"{where}: roofs without a bandwidth")
        for name in ("gflops", "gflops_bf16"):
            _number(f"{where}: roofs", name, getattr(record.roofs, name), positive=True)
        for band in record.roofs.bandwidths:
            _number(f"{where}: roofs, {band.level}", "gbps", band.gbps, positive=True)


def _number(where: str, name: str, value: object, positive: bool = False) -> None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not right or value < 0 or (positive and value == 0):  # type: ignore[operator]
        raise ValueError(f"{where}: {name} = {value!r}: expected a number {'above 0' if positive else 'from 0 on'}")
