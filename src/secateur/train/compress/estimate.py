"""What a search will cost, told before it begins: seconds per step are measured on a few steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from secateur.text import three
from secateur.train.compress.candidates import Family
from secateur.train.compress.cheap import Range
from secateur.train.compress.road import training_of
from secateur.train.compress.run import Run
from secateur.train.compress.setting import copied
from secateur.train.loop.feed import steps_per_epoch
from secateur.train.loop.fit import fit
from secateur.train.loop.fitted import Moment

__all__ = ["estimate"]

_STEPS = 4


def estimate(run: Run, ranges: Mapping[Family, Range], trials: int) -> str:
    """``at most 8 points x 94 steps x 1.2 ms = 0.9 s of training, rivals and measuring apart``.

    Args:
        run: whose training is tried, on a copy.
        ranges: what will be searched.
        trials: points at most.

    Returns:
        One line.
    """
    setting = run.setting
    recovery = setting.recovery
    try:
        per_epoch = steps_per_epoch(setting.train, recovery)
    except ValueError:  # a loader without a length
        return f"at most {trials} points; what one costs is known after the first"
    epochs = max(
        sum(training.epochs for stage in family.stages if (training := training_of(setting, stage)) is not None)
        for family in ranges
    )
    if not epochs:
        return f"at most {trials} points without training; measuring and rivals come on top"
    times = list[float]()

    def note(moment: Moment) -> None:
        if moment.at == "step":
            times.append(time.perf_counter())

    stop = min(_STEPS, per_epoch)
    began = time.perf_counter()
    steady = replace(recovery, patience=None)  # a few steps are judged by nobody
    fit(copied(setting.dense), setting.train, steady, stop=stop, callbacks=(note,), progress=False)
    # The first step warms up; where there is only one it has to do.
    seconds = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else time.perf_counter() - began
    points = trials if run.goal.max_drop is not None else min(trials, 3 * len(ranges))
    one = epochs * per_epoch * seconds
    return (
        f"at most {points} points x {epochs * per_epoch} steps x {three(1000 * seconds)} ms = {three(points * one)} s "
        "of training; measuring and rivals come on top"
    )
