"""mkdocs hook: fills ``<!-- table:NAME -->`` with the package's own tables, and shares CONTRIBUTING.md.

The catalogue page is thereby never out of date: it is drawn from the rows that the program uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from secateur.core import ALLOCATIONS, CRITERIA, SCHEDULES, UNITS
from secateur.core.names import hyperparameters, needs
from secateur.core.solvers import SOLVERS

__all__ = ["TABLES", "fill", "on_page_markdown"]

ROOT = Path(__file__).resolve().parents[2]
MARKER = re.compile(r"<!-- table:(\w+) -->")
INCLUDE = re.compile(r"<!-- include:([\w./-]+) -->")


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(_cell(text) for text in row) + " |" for row in rows])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "-"


def _options(function: Callable[..., Any]) -> str:
    return ", ".join(f"`{name}`" for name in hyperparameters(function))


def criteria() -> str:
    """Name, formula, what it reads, hyper-parameters, what the user gives, level and pooling, reference."""
    return _table(
        ("criterion", "score (low goes first)", "reads", "options", "you give", "level, pooled by", "reference"),
        (
            (
                f"`{name}`",
                row.summary,
                ", ".join(needs(row.function)),
                _options(row.function),
                row.data,
                f"{row.level}, {row.reduce}" if row.level == "weight" else "unit",
                row.reference,
            )
            for name, row in CRITERIA.items()
        ),
    )


def units() -> str:
    """Name and what is removed together."""
    return _table(("unit", "what is removed together"), ((f"`{name}`", row.summary) for name, row in UNITS.items()))


def allocations() -> str:
    """Name, rule, what it reads, options, reference."""
    return _table(
        ("allocation", "units each parameter keeps", "reads", "options", "reference"),
        (
            (f"`{name}`", row.summary, ", ".join(needs(row.function)), _options(row.function), row.reference)
            for name, row in ALLOCATIONS.items()
        ),
    )


def schedules() -> str:
    """Name, formula, options, reference."""
    return _table(
        ("schedule", "sparsity at progress t", "options", "reference"),
        ((f"`{name}`", row.summary, _options(row.function), row.reference) for name, row in SCHEDULES.items()),
    )


def solvers() -> str:
    """Name, rule, whether it chooses, reference."""
    return _table(
        ("solver", "what it does in each layer", "chooses the weights", "reference"),
        ((f"`{name}`", row.summary, "yes" if row.chooses else "no", row.reference) for name, row in SOLVERS.items()),
    )


TABLES: dict[str, Callable[[], str]] = {
    "criteria": criteria,
    "units": units,
    "allocations": allocations,
    "schedules": schedules,
    "solvers": solvers,
}


def fill(markdown: str) -> str:
    """Replace the markers of a page.

    Raises:
        KeyError: for a table that does not exist.
    """
    page = MARKER.sub(lambda match: TABLES[match.group(1)](), markdown)
    return INCLUDE.sub(lambda match: (ROOT / match.group(1)).read_text(encoding="utf-8"), page)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return fill(markdown)
