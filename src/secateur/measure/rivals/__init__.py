"""Dense runtimes and sparse ones on the same network, measured fairly: one process each, in turns."""

from __future__ import annotations

from secateur.measure.rivals.case import Case
from secateur.measure.rivals.race import compare, compare_all
from secateur.measure.rivals.runtimes import DEFAULT, RUNTIMES, TOLERANCE, Runtime
from secateur.measure.rivals.turns import Settings
from secateur.records import RivalRow, Rivals

__all__ = [
    "DEFAULT",
    "RUNTIMES",
    "TOLERANCE",
    "Case",
    "RivalRow",
    "Rivals",
    "Runtime",
    "Settings",
    "compare",
    "compare_all",
]
