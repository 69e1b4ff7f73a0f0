"""Learning-rate schedules: pure functions of the share of training that has passed.

Each gives a factor of the learning rate. A share of training, not a number of steps, so that a schedule fits a
training of any length and can be entered anywhere: that is what rewinding does.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from secateur.core.names import lookup, parse_spec

__all__ = [
    "LR_SCHEDULES",
    "Factor",
    "LrScheduleEntry",
    "constant",
    "cosine",
    "linear",
    "lr_factor",
    "one_cycle",
    "steps",
]

Factor: TypeAlias = Callable[[float], float]
"""``progress in [0, 1] -> factor of the learning rate``."""


@dataclass(frozen=True)
class LrScheduleEntry:
    """A row of ``LR_SCHEDULES``."""

    function: Callable[..., float]
    summary: str
    reference: str


def constant(progress: float) -> float:
    """The same learning rate all the way, ``f = 1``.

    Args:
        progress: share of training that has passed.

    Returns:
        The factor.

    Example:
        >>> constant(0.7)
        1.0
    """
    return 1.0


def linear(progress: float, *, last: float = 0.0) -> float:
    """Straight down, ``f = 1 - (1 - last) p``.

    Args:
        progress: share of training that has passed.
        last: factor at the end.

    Returns:
        The factor.

    Example:
        >>> linear(0.25)
        0.75
    """
    return 1.0 - (1.0 - last) * progress


def cosine(progress: float, *, last: float = 0.0) -> float:
    """Half a cosine, ``f = last + (1 - last) (1 + cos(pi p)) / 2``.

    Args:
        progress: share of training that has passed.
        last: factor at the end.

    Returns:
        The factor.

    Example:
        >>> cosine(0.0), round(cosine(0.5), 12), cosine(1.0)
        (1.0, 0.5, 0.0)

    Reference:
        Loshchilov, Hutter 2017, arXiv 1608.03983.
    """
    return last + (1.0 - last) * (1.0 + math.cos(math.pi * progress)) / 2.0


def one_cycle(progress: float, *, warmup: float = 0.3, first: float = 0.04, last: float = 4e-6) -> float:
    """Up and down again by half cosines: ``first`` to 1 while ``p < warmup``, then 1 to ``last``.

    Args:
        progress: share of training that has passed.
        warmup: share of training that goes up, in [0, 1).
        first: factor at the beginning.
        last: factor at the end.

    Returns:
        The factor.

    Raises:
        ValueError: for a warmup outside [0, 1).

    Example:
        >>> one_cycle(0.0), one_cycle(0.3), round(one_cycle(1.0), 6)
        (0.04, 1.0, 4e-06)

    Reference:
        Smith, Topin 2018, arXiv 1708.07120; cosines and defaults as in torch.optim.lr_scheduler.OneCycleLR.
    """
    if not 0.0 <= warmup < 1.0:
        raise ValueError(f"one_cycle(warmup={warmup!r}): a share of training is needed, 0 <= warmup < 1")
    if progress < warmup:
        return first + (1.0 - first) * (1.0 - math.cos(math.pi * progress / warmup)) / 2.0
    return cosine((progress - warmup) / (1.0 - warmup), last=last)


def steps(progress: float, *milestones: float, factor: float = 0.1) -> float:
    """Down by ``factor`` at every milestone, ``f = factor^(milestones passed)``.

    Args:
        progress: share of training that has passed.
        milestones: shares of training; none: 0.5 and 0.75.
        factor: at each of them.

    Returns:
        The factor.

    Raises:
        ValueError: for milestones that do not rise inside (0, 1), such as numbers of epochs.

    Example:
        >>> [round(steps(p, 0.5, 0.75), 3) for p in (0.49, 0.5, 0.6, 0.75)]
        [1.0, 0.1, 0.1, 0.01]

    Reference:
        Follows from the definition.
    """
    shares = milestones or (0.5, 0.75)
    if list(shares) != sorted(set(shares)) or not all(0.0 < share < 1.0 for share in shares):
        raise ValueError(
            f"steps{milestones}: milestones are shares of training, rising, between 0 and 1; "
            "epochs 50 and 75 of 100 are steps(0.5, 0.75)"
        )
    return factor ** sum(progress >= share for share in shares)


LR_SCHEDULES: dict[str, LrScheduleEntry] = {
    "constant": LrScheduleEntry(constant, "1", "definition"),
    "linear": LrScheduleEntry(linear, "1 - (1 - last) p", "definition"),
    "cosine": LrScheduleEntry(cosine, "(1 + cos(pi p)) / 2, down to last", "Loshchilov, Hutter 2017, arXiv 1608.03983"),
    "one_cycle": LrScheduleEntry(one_cycle, "up to 1 at p = warmup, then down", "Smith, Topin 2018, arXiv 1708.07120"),
    "steps": LrScheduleEntry(steps, "factor^(milestones passed)", "definition"),
}
"""Name -> how the learning rate runs through training."""


def lr_factor(spec: str) -> Factor:
    """The factor function of a spec.

    Args:
        spec: a name of ``LR_SCHEDULES``, also with arguments: ``"steps(0.5, 0.75, factor=0.1)"``.

    Returns:
        ``factor(progress)``; outside [0, 1] progress counts as 0 or 1.

    Raises:
        ValueError: for an unknown name, and for arguments that the schedule does not take.

    Example:
        >>> lr_factor("cosine(last=0.1)")(1.0)
        0.1
    """
    name, arguments, options = parse_spec(spec)
    function = lookup("lr_schedule", LR_SCHEDULES, name).function
    signature = inspect.signature(function)
    known = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    try:
        signature.bind(0.0, *arguments, **options)
    except TypeError as error:
        takes = ", ".join(known) or "nothing"
        raise ValueError(f"lr_schedule {spec!r}: {error}; {name} takes {takes}") from None
    for value in (*arguments, *options.values()):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"lr_schedule {spec!r}: {value!r} is not a number")
    found = partial(_clamped, function, arguments, options)
    for progress in (0.0, 0.5, 1.0):  # refuses bad arguments now, not in the middle of a training
        factor = found(progress)
        if not (math.isfinite(factor) and factor >= 0.0):
            raise ValueError(f"lr_schedule {spec!r} gives the factor {factor} at {progress} of training: 0 or more")
    return found


def _clamped(function: Callable[..., float], arguments: tuple[Any, ...], options: dict[str, Any], p: float) -> float:
    return function(min(1.0, max(0.0, p)), *arguments, **options)
