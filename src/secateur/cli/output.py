"""How the commands print: tables as wide as they need, JSON, and names from files without their control characters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "print_json", "print_line", "print_table", "printable"]

_PIPE_WIDTH = 160


def console(*, stderr: bool = False) -> Console:
    """The terminal, at its width; a pipe or a file takes 160 columns.

    Args:
        stderr: standard error instead of standard output.

    Returns:
        A console that neither highlights nor reads markup.
    """
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not found.is_terminal:
        found.width = _PIPE_WIDTH
    return found


def printable(text: str) -> str:
    r"""The text with what is not printable written out: a file's tensor names must not drive the terminal.

    Args:
        text: of any origin; line breaks stay.

    Returns:
        The same where everything is printable.

    Example:
        >>> printable("fc.weight\x1b[2J")
        'fc.weight\\x1b[2J'
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def print_json(value: Any) -> None:
    """Plain JSON on standard output, indented by two."""
    print(json.dumps(value, indent=2))


def print_line(text: str) -> None:
    """Text on standard output, its control characters written out."""
    print(printable(text))


def print_table(title: str, heading: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """A table on standard output.

    Args:
        title: stands above it.
        heading: names of the columns; the first is never wrapped.
        rows: cells, as many as there are names.
        right: the columns that hold numbers.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for place, name in enumerate(heading):
        number = name in right
        table.add_column(name, justify="right" if number else "left", no_wrap=number or place == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    target = console()
    target.print(Text(printable(title), style="bold"), soft_wrap=True)
    target.print(table)
    target.print()
