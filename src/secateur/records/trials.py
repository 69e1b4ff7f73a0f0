"""What a search for a goal tried: every point, the frontier among them, the one chosen, and its rivals.

Metrics are in the user's own points (per cent, where the metric is accuracy), larger is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.records.base import Jsonable
from secateur.records.measured import Environment

__all__ = ["Rival", "Score", "Trial", "Trials"]


@dataclass(frozen=True)
class Score(Jsonable):
    """The metric on one split. ``drop`` is what the dense model has more, with its standard error where known."""

    split: str
    value: float
    drop: float = 0.0
    standard_error: float | None = None


@dataclass(frozen=True)
class Trial(Jsonable):
    """One model that was measured.

    ``bytes`` of the file that ``sc.save`` writes, ``params`` kept, ``macs`` that run for one sample (a masked weight
    runs). ``ms`` per call and ``speedup``, the ratio of medians to the dense model in the same rounds; inside
    ``spread`` it is no gain. ``sparsities``: the share of units that each stage removed. ``untrained``: metric on
    valid before recovery. ``test`` is None until the search is over.
    """

    key: str
    family: str
    strength: float
    sparsities: tuple[float, ...]
    untrained: float | None
    valid: Score
    test: Score | None
    bytes: int
    params: int
    macs: int
    ms: float
    speedup: float
    spread: tuple[float, float]
    epochs: int
    steps: int
    seconds: float

    @property
    def told(self) -> Score:
        """The score to report: on test where there is one, never then the one that was searched on."""
        return self.valid if self.test is None else self.test


@dataclass(frozen=True)
class Rival(Jsonable):
    """What the chosen model competes with; ``trial`` is None, with the reason, where it was left out."""

    name: str
    trial: Trial | None
    note: str


@dataclass(frozen=True)
class Trials(Jsonable):
    """The whole search.

    Attributes:
        goal: what was asked: fractions of the dense model up to 1, figures above.
        limits: sizes in absolute figures.
        met: whether the chosen point meets all of it.
        missed: what the chosen point misses, in words; empty where it is met.
        metric: its name and unit.
        split: the split whose figures are told.
        batch: samples per call, where milliseconds are told.
        dense: the user's model.
        chosen: key of the chosen point; of the nearest where the goal is not met.
        points: every trained point, in the order of trial.
        frontier: keys of the points than which no other is better in metric on valid, bytes and multiply-adds together.
        rivals: of the chosen point.
        families: name -> its stages, as they were searched.
        recovery: how points were trained.
        notes: what else there is to know.
        folder: where every point is kept; None: nothing was written.
        environment: where times were taken.
    """

    goal: dict[str, float]
    limits: dict[str, float]
    met: bool
    missed: tuple[str, ...]
    metric: str
    split: str
    batch: int
    dense: Trial
    chosen: str
    points: tuple[Trial, ...]
    frontier: tuple[str, ...]
    rivals: tuple[Rival, ...]
    families: dict[str, tuple[dict[str, Any], ...]]
    recovery: dict[str, Any]
    notes: tuple[str, ...]
    folder: str | None
    environment: Environment

    def point(self, key: str) -> Trial:
        """The point of that key.

        Raises:
            ValueError: if there is none.
        """
        for trial in self.points:
            if trial.key == key:
                return trial
        raise ValueError(f"no point {key!r}; there are {[trial.key for trial in self.points]}")
