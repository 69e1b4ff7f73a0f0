"""What a run will cost, from a few steps on a throw-away copy."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.cli.recipe.resolve import Prepared
    from secateur.train.compress.candidates import Family
    from secateur.train.compress.stage import Stage
    from secateur.train.loop.fitted import Moment
    from secateur.train.loop.training import Training

__all__ = ["Estimate", "estimate", "words"]

_STEPS = 6
_MINUTE = 60


@dataclass(frozen=True)
class Estimate:
    """Seconds on this machine, as it is now.

    Attributes:
        points: trained models at most, the rival not among them.
        epochs: of one point, at most.
        steps_per_epoch: None for a loader without a length.
        step_ms: of one optimizer step of the dense model.
        valid_s: of the metric on ``valid``.
        train_s: of one point's training; None for a loader without a length.
        total_s: of all points and of the narrower dense rival, at most; likewise.
    """

    points: int
    epochs: int
    steps_per_epoch: int | None
    step_ms: float
    valid_s: float
    train_s: float | None
    total_s: float | None

    def to_record(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def estimate(prepared: Prepared, chosen: Mapping[str, Any], families: Sequence[Family]) -> Estimate:
    """Train a copy for a few steps, and take the metric once.

    Args:
        prepared: model and data; neither is changed.
        chosen: the keyword arguments of ``sc.compress``.
        families: what is searched.

    Returns:
        The estimate.
    """
    from secateur.train.compress import compress
    from secateur.train.compress.setting import Judge, undisturbed

    training: Training = chosen["recovery"]
    with undisturbed(*prepared.data.values()):
        steps, step_s = _steps(prepared, training)
        began = time.perf_counter()
        Judge(prepared.model, chosen["metric"]).dense(prepared.data["valid"], "valid")
        valid_s = time.perf_counter() - began
    trials = chosen.get("trials", inspect.signature(compress).parameters["trials"].default)
    points = max(trials, len(families))
    if chosen["goal"].max_drop is None:  # nothing to bisect: the least that is small enough, and two beside it
        points = min(points, 3 * len(families))
    epochs = max(sum(_epochs(stage, training) for stage in family.stages) for family in families)
    train_s = None if steps is None else epochs * steps * step_s
    models = points + (1 if chosen["rivals"] else 0)
    total_s = None if train_s is None else models * (train_s + (epochs + 1) * valid_s)
    return Estimate(points, epochs, steps, 1000 * step_s, valid_s, train_s, total_s)


def _epochs(stage: Stage, training: Training) -> int:
    return training.epochs if stage.epochs is None else stage.epochs


def _steps(prepared: Prepared, training: Training) -> tuple[int | None, float]:
    """Steps of an epoch, and the seconds of one: the median of a few."""
    from secateur.train.compress.setting import copied
    from secateur.train.loop.feed import steps_per_epoch
    from secateur.train.loop.fit import fit

    data = prepared.data["train"]
    steps = steps_per_epoch(data, training) if hasattr(data, "__len__") else None
    stamps: list[float] = []

    def note(moment: Moment) -> None:
        if moment.at == "step":
            stamps.append(time.perf_counter())

    stop = min(_STEPS, _STEPS if steps is None else steps)
    steady = replace(training, patience=None)  # a few steps are judged by nobody
    fit(copied(prepared.model), data, steady, stop=stop, callbacks=(note,), progress=False)
    apart = [after - before for before, after in pairwise(stamps)]
    return steps, statistics.median(apart or [0.0])


def words(seconds: float) -> str:
    """A duration for people.

    Example:
        >>> words(0.012), words(42), words(600), words(9000)
        ('less than a second', '42 s', '10 min', '2.5 h')
    """
    if seconds < 1:
        return "less than a second"
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < 2 * _MINUTE**2 else f"{seconds / _MINUTE**2:.1f} h"
