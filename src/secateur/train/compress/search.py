"""Two ways to spend the trials: bisection of every family in turn, and Optuna."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from secateur.records import Trial
from secateur.train.compress.bisection import Bisection
from secateur.train.compress.candidates import Family
from secateur.train.compress.cheap import Range
from secateur.train.compress.goal import size_of
from secateur.train.compress.page import in_digits
from secateur.train.compress.run import Run
from secateur.train.compress.sampler import make_sampler

__all__ = ["SEARCHES", "Search"]

Search = Callable[[Run, Mapping[Family, Range], int], None]
"""``(run, ranges, trials)``: trains at most so many points."""


def bisect(run: Run, ranges: Mapping[Family, Range], trials: int) -> None:
    """Families in turn, each by bisection of its strength.

    Args:
        run: makes the points.
        ranges: where each family is worth training.
        trials: points at most; every family gets one.
    """
    searches = {family: Bisection(span, by_drop=run.goal.max_drop is not None) for family, span in ranges.items()}
    left = max(trials, len(searches))
    while waiting := _waiting(run, searches):
        for family, index in waiting:
            if not left:
                return
            left -= 1
            point = _made(run, family, index, left)
            misses = run.limits.misses(point)
            searches[family].tell(index, within="max_drop" not in misses, sized=misses.keys() <= {"max_drop"})


def optimise(run: Run, ranges: Mapping[Family, Range], trials: int) -> None:
    """Optuna's TPE over family and strength, with what the goal asks as constraints.

    With an allowed drop the smallest is looked for, without one the best metric.

    Args:
        run: makes the points.
        ranges: where each family is worth training.
        trials: points at most.

    Raises:
        ImportError: naming the extra, where optuna is not installed.

    Reference:
        Bergstra, Bardenet, Bengio, Kegl 2011, "Algorithms for Hyper-Parameter Optimization" (TPE); Akiba, Sano, Yanase,
        Ohta, Koyama 2019, arXiv 1907.10902 (Optuna).
    """
    named = {family.name: family for family in ranges}
    spans = {name: (ranges[family].least or 1, ranges[family].last) for name, family in named.items()}
    sampler = make_sampler(spans, seed=run.setting.seed, trials=trials)
    for left in reversed(range(trials)):
        name, index = sampler.ask()
        point = _made(run, named[name], index, left)
        misses = run.limits.misses(point)
        if run.goal.max_drop is None:
            value = -point.valid.value
        else:
            value = math.log(size_of(run.goal, point)[0] / size_of(run.goal, run.dense)[0])
        sampler.tell(value, {name: misses.get(name, -1.0) for name in run.goal.given})


SEARCHES: dict[str, Search] = {"bisect": bisect, "optuna": optimise}
"""Name -> how trials are spent."""


def _waiting(run: Run, searches: Mapping[Family, Bisection]) -> list[tuple[Family, int]]:
    """What every family would train next; once the goal is met, not below what it asks for."""
    met = any(not run.limits.misses(point) for point in run.points.values())
    return [
        (family, index)
        for family, search in searches.items()
        if not (met and search.too_far) and (index := search.next()) is not None
    ]


def _made(run: Run, family: Family, index: int, left: int) -> Trial:
    new = len(run.points)
    point = run.point(family, index)
    shares = " then ".join(f"{share:.3f}" for share in point.sparsities)
    if len(run.points) > new:
        run.tell(
            f"{family.name}, sparsity {shares}: {in_digits(point.valid.value, point.valid)} on valid "
            f"({in_digits(-point.valid.drop, point.valid, signed=True)}), "
            f"{point.bytes:,} bytes, {point.speedup:.2f} x as fast"
            + ("" if run.goal.max_drop is None else f"; {left} more at most")
        )
    return point
