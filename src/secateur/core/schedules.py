"""Schedules: ``(progress, initial, final) -> sparsity``, pure functions of progress.

Before the window (progress < 0) every schedule returns ``initial``, from its end on (progress >= 1)
exactly ``final``; in between it is monotone and stays between the two. Iterative pruning in n rounds is
``linear`` or ``geometric`` at progress k/n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from secateur.core.names import needs, resolve
from secateur.types import ScheduleEntry

__all__ = [
    "SCHEDULES",
    "cosine",
    "cubic",
    "geometric",
    "linear",
    "one_cycle",
    "one_shot",
    "resolve_schedule",
    "update_steps",
]


def one_shot(progress: float, initial: float, final: float) -> float:
    """All at once, ``s = final`` from the first update on (so at progress 0 too).

    Args:
        progress: share of the pruning window that has passed.
        initial: sparsity before the window.
        final: sparsity at its end.

    Returns:
        The sparsity.

    Example:
        >>> one_shot(0.0, 0.0, 0.9), one_shot(-0.1, 0.0, 0.9)
        (0.9, 0.0)

    Reference:
        Follows from the definition.
    """
    return _run(progress, initial, final, lambda p: 1.0)


def linear(progress: float, initial: float, final: float) -> float:
    """The same share of the total each round, ``s = s_i + (s_f - s_i) p``.

    Args:
        progress: share of the pruning window that has passed.
        initial: sparsity before the window.
        final: sparsity at its end.

    Returns:
        The sparsity.

    Example:
        >>> linear(0.5, 0.0, 0.8)
        0.4

    Reference:
        Follows from the definition.
    """
    return _run(progress, initial, final, lambda p: p)


def geometric(progress: float, initial: float, final: float) -> float:
    """The same share of the *remaining* each round: density ``d = d_i^(1-p) d_f^p``.

    ``exponential`` names the same curve: SynFlow and FORCE write it ``d = d_f^(k/n)`` from ``d_i = 1``, and pruning a
    share q of the remaining for k rounds gives ``d = (1-q)^k``, which is this with ``d_f = (1-q)^n``.

    Args:
        progress: share of the pruning window that has passed.
        initial: sparsity before the window, below 1.
        final: sparsity at its end, below 1.

    Returns:
        The sparsity.

    Raises:
        ValueError: for a final or initial sparsity of 1: no geometric step reaches it.

    Example:
        >>> round(geometric(0.2, 0.0, 0.9), 5)
        0.36904

    Reference:
        Frankle, Carbin 2019, arXiv 1803.03635 (rounds); Tanaka et al. 2020, arXiv 2006.05467; de Jorge et al. 2021,
        arXiv 2006.09081.
    """
    _check(initial, final)
    if max(initial, final) == 1.0:
        raise ValueError(
            f"a geometric schedule from {initial} to {final}: sparsity 1 is never reached by removing a share of what "
            "remains; take a final sparsity below 1, or 'linear' or 'cubic'"
        )
    if initial == final:
        return final
    span = final - initial
    density = (1.0 - initial, 1.0 - final)
    return _run(progress, initial, final, lambda p: (1.0 - density[0] ** (1.0 - p) * density[1] ** p - initial) / span)


def cubic(progress: float, initial: float, final: float, *, power: float = 3.0) -> float:
    """Fast first, slow at the end, ``s = s_f + (s_i - s_f) (1 - p)^power``.

    Args:
        progress: share of the pruning window that has passed.
        initial: sparsity before the window.
        final: sparsity at its end.
        power: exponent, 3 in the paper; above 0.

    Returns:
        The sparsity.

    Raises:
        ValueError: for a power that is not above 0.

    Example:
        >>> round(cubic(0.1, 0.0, 0.9), 4)
        0.2439

    Reference:
        Zhu, Gupta 2017, arXiv 1710.01878.
    """
    if not power > 0:
        raise ValueError(f"cubic(power={power!r}): the power has to be above 0, 3 in the paper")
    return _run(progress, initial, final, lambda p: 1.0 - (1.0 - p) ** power)


def one_cycle(progress: float, initial: float, final: float, *, alpha: float = 14.0, beta: float = 6.0) -> float:
    """A logistic curve, ``s = s_i + (s_f - s_i) (1 + e^(beta - alpha)) / (1 + e^(beta - alpha p))``.

    At progress 0 it is a little above ``initial``: 0.002473 of the way with the default numbers, as published.

    Args:
        progress: share of the pruning window that has passed.
        initial: sparsity before the window.
        final: sparsity at its end.
        alpha: steepness, above 0.
        beta: position.

    Returns:
        The sparsity.

    Raises:
        ValueError: for an alpha that is not above 0.

    Example:
        >>> round(one_cycle(0.5, 0.0, 1.0), 6), round(one_cycle(0.0, 0.0, 1.0), 6)
        (0.731304, 0.002473)

    Reference:
        Hubens, Mancas, Gosselin, Preda, Zaharia 2021, arXiv 2107.02086.
    """
    if not alpha > 0:
        raise ValueError(f"one_cycle(alpha={alpha!r}): alpha has to be above 0, 14 as published")
    rise = 1.0 + math.exp(beta - alpha)
    return _run(progress, initial, final, lambda p: rise / (1.0 + math.exp(beta - alpha * p)))


def cosine(progress: float, initial: float, final: float) -> float:
    """Half a cosine, ``s = s_i + (s_f - s_i) (1 - cos(pi p)) / 2``.

    Args:
        progress: share of the pruning window that has passed.
        initial: sparsity before the window.
        final: sparsity at its end.

    Returns:
        The sparsity.

    Example:
        >>> round(cosine(0.25, 0.0, 0.9), 4)
        0.1318

    Reference:
        Follows from the definition.
    """
    return _run(progress, initial, final, lambda p: (1.0 - math.cos(math.pi * p)) / 2.0)


SCHEDULES: Mapping[str, ScheduleEntry] = {
    "one_shot": ScheduleEntry(one_shot, "s_f from the first update on", "definition"),
    "linear": ScheduleEntry(linear, "s_i + (s_f - s_i) p: the same share of the total each round", "definition"),
    "geometric": ScheduleEntry(
        geometric, "density d_i^(1-p) d_f^p: the same share of what remains", "Frankle, Carbin 2019, arXiv 1803.03635"
    ),
    "exponential": ScheduleEntry(
        geometric, "another name for geometric, d_f^(k/n)", "Tanaka et al. 2020, arXiv 2006.05467"
    ),
    "cubic": ScheduleEntry(cubic, "s_f + (s_i - s_f) (1 - p)^3", "Zhu, Gupta 2017, arXiv 1710.01878"),
    "one_cycle": ScheduleEntry(
        one_cycle, "(1 + e^(6-14)) / (1 + e^(6-14p)) of the way", "Hubens et al. 2021, arXiv 2107.02086"
    ),
    "cosine": ScheduleEntry(cosine, "(1 - cos(pi p)) / 2 of the way", "definition"),
}


def resolve_schedule(value: str | ScheduleEntry | Callable[..., float]) -> ScheduleEntry:
    """The row for a name, a spec such as ``"cubic(power=2)"``, or a function of (progress, initial, final).

    Raises:
        ValueError: for an unknown name, a hyper-parameter out of range, or a function with other inputs.

    Example:
        >>> resolve_schedule("cubic(power=1)").function(0.5, 0.0, 0.8)
        0.4
    """
    entry = resolve("schedule", SCHEDULES, value, _by_hand)
    if len(needs(entry.function)) != 3:
        raise ValueError(f"schedule {value!r} takes {needs(entry.function)}: it needs progress, initial, final")
    if isinstance(value, str) and "(" in value:
        entry.function(0.5, 0.0, 0.5)  # refuses bad hyper-parameters now, not at the first update of a long training
    return entry


def update_steps(begin: int, end: int, every: int) -> tuple[int, ...]:
    """Steps at which masks change: ``begin, begin + every, ...``, and always ``end``.

    Without the last one, a window that ``every`` does not divide would stop short of the final sparsity.

    Args:
        begin: first step.
        end: last step, not before ``begin``.
        every: steps between updates, at least 1.

    Returns:
        Ascending steps; one alone where ``begin == end``.

    Raises:
        ValueError: for an empty window or ``every`` below 1.

    Example:
        >>> update_steps(100, 1050, 300)
        (100, 400, 700, 1000, 1050)
    """
    if every < 1 or begin < 0 or end < begin:
        raise ValueError(f"begin={begin}, end={end}, every={every}: 0 <= begin <= end and every >= 1 are needed")
    return (*range(begin, end, every), end)


def _by_hand(function: Callable[..., float]) -> ScheduleEntry:
    return ScheduleEntry(function, "given by hand", "")


def _run(progress: float, initial: float, final: float, share: Callable[[float], float]) -> float:
    _check(initial, final)
    if math.isnan(progress):
        raise ValueError("progress is NaN: it is the share of the pruning window that has passed")
    if progress < 0.0:
        return initial
    if progress >= 1.0:
        return final
    low, high = min(initial, final), max(initial, final)
    way = share(progress)
    return final if way == 1.0 else min(high, max(low, initial + (final - initial) * way))


def _check(initial: float, final: float) -> None:
    if not (0.0 <= initial <= 1.0 and 0.0 <= final <= 1.0):
        raise ValueError(f"initial={initial!r}, final={final!r}: sparsities are shares removed, from 0 to 1")
