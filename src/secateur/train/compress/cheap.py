"""What needs no training: the least strength of a family whose file, counts and clock meet the goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.train.compress.candidates import Family, as_strength
from secateur.train.compress.figures import clocked, sizes_of
from secateur.train.compress.goal import Limits
from secateur.train.compress.identity import key_of
from secateur.train.compress.journal import Journal
from secateur.train.compress.road import untrained
from secateur.train.compress.setting import Setting

__all__ = ["Range", "figures_at", "find_range"]

_SLACK = 0.01
"""What is removed during or after a training falls a little differently: before it sizes are met with a margin."""
_CLOCK_SLACK = 0.03
_ROUNDS = 20


@dataclass(frozen=True)
class Range:
    """Where on the grid of strengths a family is worth training.

    Attributes:
        least: the first index whose sizes meet the goal; None: no strength does, or no size is asked for.
        last: the largest index that can be built.
        tried: untrained candidates that were measured.
        nearest: figures of the strongest one.
    """

    least: int | None
    last: int
    tried: int
    nearest: dict[str, Any]


def find_range(setting: Setting, family: Family, limits: Limits, journal: Journal) -> Range:
    """Bisect the strength by what needs no training.

    Args:
        setting: of the run.
        family: of candidates.
        limits: the goal; its ``max_drop`` is not looked at.
        journal: remembers what was measured.

    Returns:
        The range.

    Raises:
        ValueError: if not even the weakest candidate can be built.
    """
    tried = 0

    def at(index: int) -> dict[str, Any]:
        nonlocal tried
        tried += 1
        return figures_at(setting, family, index, limits, journal)

    slack = _slack(family)
    last, strongest = family.last, at(family.last)
    if "problem" in strongest:
        weakest = at(1)
        if "problem" in weakest:  # then it is no question of how much
            raise ValueError(weakest["problem"])
        low, high = 1, last
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if "problem" in at(middle) else (middle, high)
        last, strongest = low, at(low)
    if (not limits.sizes and limits.speedup is None) or not _meets(limits, strongest, slack):
        return Range(None, last, tried, strongest)
    low, high = 0, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _meets(limits, at(middle), slack) else (middle, high)
    return Range(high, last, tried, strongest)


def figures_at(setting: Setting, family: Family, index: int, limits: Limits, journal: Journal) -> dict[str, Any]:
    """Sizes of one untrained candidate, and its speed where the goal asks for one and the sizes do.

    Args:
        setting: of the run.
        family: of candidates.
        index: of the strength.
        limits: the goal.
        journal: remembers it.

    Returns:
        ``bytes``, ``params``, ``macs`` and, where measured, ``speedup``; or ``problem`` alone, where so much cannot go.
    """
    sparsities = family.sparsities(as_strength(index))
    key = key_of(family, sparsities)
    known = journal.get("cheap", key)
    if known is not None:
        return known
    found: dict[str, Any]
    try:
        model = untrained(setting, family.stages, sparsities)
    except ValueError as error:  # too much for some layer
        found = {"problem": str(error)}
    else:
        found = {"family": family.name, "sparsities": list(sparsities), **sizes_of(setting, model)}
        alone = Limits(None, None, limits.sizes)
        if limits.speedup is not None and not alone.misses_of_size(found, _slack(family)):
            found["speedup"] = clocked(setting, model, rounds=_ROUNDS).speedup
    journal.add("cheap", key, found)
    return found


def _slack(family: Family) -> float:
    """None where everything is removed before anything is trained: the sizes are then those of the trained one."""
    first = all(stage.epochs == 0 for stage in family.stages[:-1])
    return 0.0 if first and all(stage.when != "during" for stage in family.stages) else _SLACK


def _meets(limits: Limits, figures: dict[str, Any], slack: float) -> bool:
    sizes = Limits(None, None, limits.sizes)
    if "problem" in figures or sizes.misses_of_size(figures, slack):
        return False
    return limits.speedup is None or figures["speedup"] >= limits.speedup * (1 + _CLOCK_SLACK)
