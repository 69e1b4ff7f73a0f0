"""``secateur methods``: what there is to choose from."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from secateur.cli.output import console, print_json, print_table

__all__ = ["Choice", "methods"]

_WIDE = 120


class Choice(str, Enum):
    """The tables."""

    criteria = "criteria"
    units = "units"
    allocations = "allocations"
    schedules = "schedules"
    solvers = "solvers"


def methods(
    table: Annotated[Choice | None, typer.Argument(help="One of the tables; all of them where left out.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List criteria, units, allocations, schedules and solvers.

    Each with its formula, what it needs, and the paper. Options go in brackets: "cubic(power=2)",
    "block(4, 1)". A pattern such as "2 of 4" is given as --unit or --within and keeps the first
    number of each group.
    """
    wanted = [choice for choice in Choice if table in (None, choice)]
    tables = {choice.value: _rows(choice) for choice in wanted}
    if json:
        print_json(tables)
        return
    wide = console().width >= _WIDE
    for name, rows in tables.items():
        cells = [_cells(row, wide) for row in rows]
        heading = [column for column in cells[0] if any(row[column] for row in cells)]
        print_table(name, heading, [[row[column] for column in heading] for row in cells])


def _cells(row: dict[str, Any], wide: bool) -> dict[str, str]:
    """Columns of a row; options and units stand behind the formula, in a narrow window the reference below it."""
    notes = [*row.get("options", []), *(f"units: {unit}" for unit in row.get("units", []))]
    formula = f"{row['formula']} ({', '.join(notes)})" if notes else row["formula"]
    reference = row.get("reference", "")
    if reference and not wide:
        formula, reference = f"{formula}\n{reference}", ""
    return {
        "name": row["name"],
        "level": row.get("level", ""),
        "data": f"{row['data']} ({row['batches']})" if row.get("data") == "batches" else row.get("data", ""),
        "formula": formula,
        "reference": reference,
    }


def _rows(choice: Choice) -> list[dict[str, Any]]:
    from secateur.core import ALLOCATIONS, CRITERIA, SCHEDULES, UNITS
    from secateur.core.solvers import SOLVERS

    if choice is Choice.solvers:
        return [
            {"name": name, "formula": entry.summary, "reference": entry.reference} for name, entry in SOLVERS.items()
        ]
    if choice is Choice.units:
        pattern = {"name": "2 of 4", "formula": "keep 2 of every 4 weights along the input axis; any n of m"}
        return [*({"name": name, "formula": entry.summary} for name, entry in UNITS.items()), pattern]
    if choice is Choice.criteria:
        return [
            {
                "name": name,
                "formula": entry.summary,
                "level": entry.level,
                "data": entry.data,
                "batches": entry.batches if entry.data == "batches" else None,
                "units": sorted(entry.units or ()),
                "options": _options(entry.function),
                "reference": entry.reference,
            }
            for name, entry in CRITERIA.items()
        ]
    entries = ALLOCATIONS if choice is Choice.allocations else SCHEDULES
    return [
        {
            "name": name,
            "formula": entry.summary,
            "options": _options(entry.function),
            "reference": entry.reference,
        }
        for name, entry in entries.items()
    ]


def _options(function: Any) -> list[str]:
    import inspect

    parameters = inspect.signature(function).parameters.values()
    return [f"{p.name}={p.default!r}" for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
