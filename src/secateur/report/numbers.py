"""Numbers as a reader wants them: three significant digits, SI prefixes, one spelling for what is not there."""

from __future__ import annotations

import math

from secateur.records import Accuracy, Latency
from secateur.text import MISSING, data_size, decimals, quantity, three

__all__ = [
    "MISSING",
    "accuracy",
    "accuracy_change",
    "data_size",
    "duration",
    "latency",
    "latency_change",
    "percent",
    "quantity",
    "speedup",
    "three",
]


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as a percentage, without the sign.

    Example:
        >>> percent(0.9), percent(0.00312, 2), percent(None)
        ('90.0', '0.31', '–')
    """
    return MISSING if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}"


def _bare(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def accuracy(row: Accuracy | None) -> str:
    """``97.8 ± .6``: per cent, with the standard error; two decimals where the error is below a tenth.

    Example:
        >>> accuracy(Accuracy("test", 360, 0.97778, 0.00777, 0.1, 0.02))
        '97.8 ± .8'
        >>> accuracy(Accuracy("test", 10**6, 0.97778, 0.00015, 0.1, 0.02))
        '97.78 ± .01'
    """
    if row is None:
        return MISSING
    digits = 1 if 100 * row.standard_error >= 0.095 else 2
    return f"{percent(row.top1, digits)} ± {_bare(100 * row.standard_error, digits)}"


def accuracy_change(dense: Accuracy | None, sparse: Accuracy | None) -> str:
    """``97.8 ± .6 → 97.1 ± .7``, in per cent."""
    return MISSING if dense is None and sparse is None else f"{accuracy(dense)} → {accuracy(sparse)}"


def _like(value: float, median: float) -> str:
    return f"{value:,.{decimals(median)}f}"


def duration(ms: float) -> str:
    """Milliseconds, or microseconds where there is less than a tenth of one.

    Example:
        >>> duration(25.04), duration(0.1), duration(0.00714)
        ('25.0 ms', '0.100 ms', '7.14 µs')
    """
    return f"{three(ms)} ms" if ms >= 0.1 else f"{three(1e3 * ms)} µs"


def latency(row: Latency) -> str:
    """``0.412 [0.398 0.430]``: median and quartiles in ms, with the decimals of the median.

    Example:
        >>> latency(Latency(1, 1, 0.41234, 0.3981, 0.43, 30))
        '0.412 [0.398 0.430]'
    """
    quartiles = f"{_like(row.low_ms, row.median_ms)} {_like(row.high_ms, row.median_ms)}"
    return f"{three(row.median_ms)} [{quartiles}]"


def latency_change(dense: Latency, sparse: Latency) -> str:
    """``0.412 → 0.420 [0.415 0.431]``: dense median to sparse median with its quartiles, in ms."""
    return f"{three(dense.median_ms)} → {latency(sparse)}"


def speedup(value: float, spread: tuple[float, float]) -> str:
    """``1.84 [0.98 1.02]``: the range of dense against itself in the same rounds stands behind it.

    Example:
        >>> speedup(1.8377, (0.981, 1.019))
        '1.84 [0.98 1.02]'
    """
    if not all(map(math.isfinite, (value, *spread))):
        return three(value)
    digits = 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} [{spread[0]:.{digits}f} {spread[1]:.{digits}f}]"
