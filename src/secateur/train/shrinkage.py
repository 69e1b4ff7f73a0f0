"""What a removal asked for and what came of it, remembered beside the smaller model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from secateur.model.names import unwrap
from secateur.text import MISSING, data_size, quantity, three
from secateur.train.recalibrate import Recalibration

__all__ = ["Figures", "Shrinkage", "Width", "remember_shrinkage", "shrinkage"]


@dataclass(frozen=True)
class Figures:
    """One model: parameters, multiply-adds of one sample, bytes as plain safetensors, milliseconds per call.

    ``macs`` is None where they were not counted, ``latency_ms`` where no time was asked for.
    """

    params: int
    macs: int | None
    bytes: int
    latency_ms: float | None = None


@dataclass(frozen=True)
class Width:
    """One coupled group: how many units it had and has."""

    name: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class Shrinkage:
    """What ``shrink`` was asked for and what came of it.

    Attributes:
        requested: what was asked -> the figure: up to 1.0 a fraction of the dense model's, above it absolute;
            ``sparsity``: the share of units to remove. Empty where masks or units were given.
        limits: the same in absolute figures.
        before: of the dense model.
        after: of the smaller model; counted on it, not predicted.
        groups: the widths before and after.
        frozen: axes that could not lose anything, with the reason.
        notes: what else there is to know.
        recalibration: of batch norms, with accuracy before and after it where ``valid`` was given.
    """

    requested: Mapping[str, float]
    limits: Mapping[str, float]
    before: Figures
    after: Figures
    groups: tuple[Width, ...]
    frozen: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()
    recalibration: Recalibration | None = None

    def to_record(self) -> dict[str, Any]:
        """Plain JSON."""
        again = None if self.recalibration is None else self.recalibration.to_record()
        return {
            "requested": dict(self.requested),
            "limits": dict(self.limits),
            "before": asdict(self.before),
            "after": asdict(self.after),
            "groups": [asdict(width) for width in self.groups],
            "frozen": dict(self.frozen),
            "notes": list(self.notes),
            "recalibration": again,
        }

    def __str__(self) -> str:
        lines = [f"{'':12}{'before':>12}{'after':>12}{'share':>9}{'at most':>12}"]
        lines += [row for key in ("params", "macs", "bytes", "latency_ms") if (row := self._row(key))]
        if "units" in self.limits:
            units = sum(width.before for width in self.groups), sum(width.after for width in self.groups)
            lines.append(
                _columns("units", str(units[0]), str(units[1]), units[1] / units[0], f"{self.limits['units']:.0f}")
            )
        longest = max((len(width.name) for width in self.groups), default=0)
        lines += ["widths:"] if self.groups else []
        lines += [
            f"  {width.name:{longest}}  {width.before:>5} -> {width.after} {width.kind}s" for width in self.groups
        ]
        if self.frozen:
            lines += ["not from:"] + [f"  {axis}: {why}" for axis, why in self.frozen.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines + ([] if self.recalibration is None else [str(self.recalibration)]))

    def _row(self, key: str) -> str:
        before: float | None = getattr(self.before, key)
        after: float | None = getattr(self.after, key)
        if before is None or after is None:
            return ""
        limit = self.limits.get(key)
        told = None if limit is None else _text(key, limit)
        return _columns(key, _text(key, before), _text(key, after), after / max(before, 1e-12), told)


_KNOWN: WeakKeyDictionary[nn.Module, Shrinkage] = WeakKeyDictionary()


def remember_shrinkage(model: nn.Module, record: Shrinkage) -> None:
    """Note what came of a removal; a later one takes its place.

    Args:
        model: the smaller model, wrapped or not.
        record: about it.
    """
    _KNOWN[unwrap(model)] = record


def shrinkage(model: nn.Module) -> Shrinkage | None:
    """What the last ``shrink`` that made a model was asked for, and what came of it.

    Args:
        model: as ``shrink`` returned it, wrapped or not.

    Returns:
        The record; print it. None for a model that ``shrink`` did not make, for copies, and for loaded ones.

    Example:
        >>> shrinkage(nn.Linear(2, 2)) is None
        True
    """
    return _KNOWN.get(unwrap(model))


def _text(key: str, value: float) -> str:
    if key == "bytes":
        return data_size(int(value))
    return three(value) if key == "latency_ms" else quantity(value)


def _columns(name: str, before: str, after: str, share: float, limit: str | None) -> str:
    return f"{name:12}{before:>12}{after:>12}{100 * share:>8.1f}%{MISSING if limit is None else limit:>12}"
