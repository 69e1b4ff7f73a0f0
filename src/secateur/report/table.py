"""The table in the terminal: one line per record, stacked where the window is too narrow for one table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from secateur.records import Report
from secateur.report.columns import LEGEND, Group, cell_groups, notes, verdicts
from secateur.report.headline import text_summary
from secateur.report.subject import Subject, as_report

__all__ = ["print_table", "table", "text_summary"]

NARROW = 18  # columns that a long name may be wrapped to


def table(subject: Subject, *, width: int | None = None) -> Table:
    """One line per record: fit, size, time; the notes below.

    Groups of columns (fit, size, one per batch) share a table while they fit into ``width``
    and go into another below it where they do not, so that no number is ever wrapped.

    Args:
        subject: a ``Record`` or a ``Report``.
        width: columns of the window; None asks the terminal.

    Returns:
        A ``rich.table.Table`` whose rows are the tables, the legend and the notes.

    Raises:
        ValueError: for a report that has no records, or whose names and records do not line up.

    Example:
        >>> table(Report("nothing", (), ()))
        Traceback (most recent call last):
        ...
        ValueError: report 'nothing' has no records: there is nothing to show
    """
    report = as_report(subject)
    width = Console().width if width is None else width
    page = Table.grid(padding=(0, 0))
    page.title = Text(report.title, style="bold")
    page.title_justify = "left"
    page.add_column(overflow="fold")
    for groups in _packed(report, width):
        page.add_row(_one_table(report, groups))
    page.add_row(Text(LEGEND, style="dim"))
    for names, note in notes(report) if len(report.names) == 1 else verdicts(report):
        who = "all" if names == report.names and len(names) > 1 else ", ".join(names)
        page.add_row(Text.assemble((f"\n{who}: ", "bold"), note))
    return page


def print_table(subject: Subject, *, console: Console | None = None) -> None:
    """Prints ``table(subject)`` at the width of the console.

    Args:
        subject: a ``Record`` or a ``Report``.
        console: where to; None is standard output.

    Example:
        >>> print_table(Report("nothing", (), ()))
        Traceback (most recent call last):
        ...
        ValueError: report 'nothing' has no records: there is nothing to show
    """
    target = Console() if console is None else console
    target.print(table(subject, width=target.width))


def _packed(report: Report, width: int) -> list[list[Group]]:
    """Tables, in order: a part joins the table above where it fits, and is split only where it must be."""
    tables: list[list[Group]] = []
    for _, part in itertools.groupby(cell_groups(report), key=lambda group: group.part):
        groups = list(part)
        if tables and _needed(report, [*tables[-1], *groups], wrap=False) <= width:
            tables[-1].extend(groups)
        elif _needed(report, groups, wrap=True) <= width:
            tables.append(groups)
        else:
            tables.extend(_split(report, groups, width))
    return tables


def _split(report: Report, groups: Sequence[Group], width: int) -> list[list[Group]]:
    """Groups of one part in as few tables as fit; a single group too wide for the window stands alone."""
    tables: list[list[Group]] = [[groups[0]]]
    for group in groups[1:]:
        if _needed(report, [*tables[-1], group], wrap=True) <= width:
            tables[-1].append(group)
        else:
            tables.append([group])
    return tables


def _needed(report: Report, groups: Sequence[Group], *, wrap: bool) -> int:
    """Columns of the window that a table takes, its names on one line or wrapped at ``NARROW``."""
    console = Console(width=10_000)
    measured = Measurement.get(console, console.options, _one_table(report, groups)).maximum
    longest = max(cell_len(name) for name in report.names)
    return measured - max(0, longest - NARROW) if wrap else measured


def _one_table(report: Report, groups: Sequence[Group]) -> Table:
    body = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="")
    parts = ", ".join(dict.fromkeys(group.part for group in groups))
    longest = max(cell_len(name) for name in report.names)
    body.add_column(Text(f"\n{parts}", style="dim"), overflow="fold", min_width=min(longest, NARROW))
    for column in (column for group in groups for column in group.columns):
        heading = Text.assemble((column.heading, "bold"), "\n", (column.unit, "dim"))
        body.add_column(heading, justify="right", no_wrap=True)
    cells = zip(*(column.cells for group in groups for column in group.columns), strict=True)
    for name, row in zip(report.names, cells, strict=True):
        body.add_row(Text(name, style="bold"), *map(Text, row))
    return body
