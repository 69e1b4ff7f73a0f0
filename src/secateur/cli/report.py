"""``secateur report``: records of `secateur measure` as one page, and as pictures."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from secateur.records import Record, Report

__all__ = ["read_records", "report"]


def report(
    records: Annotated[list[Path], typer.Argument(help="Files of `secateur measure --json`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    png: Annotated[Path | None, typer.Option("--png", help="A folder for the plots as PNG files too.")] = None,
    title: Annotated[str, typer.Option("--title", help="Stands above the page.")] = "Dense and sparse",
) -> None:
    """Draw records as one HTML page.

    The page is a single file that opens anywhere, without a network. Each record is named by its file.
    """
    from secateur.report import KINDS, figure, to_html

    found = read_records(records, title)
    try:
        print(f"wrote {to_html(found, output)}")
        for kind in KINDS if png is not None else ():
            try:
                print(f"wrote {figure(found, kind, Path(png or '') / f'{kind}.png')}")
            except ValueError as error:
                print(f"left out {kind}.png: {str(error).rpartition(': ')[2]}")
    except ModuleNotFoundError:
        raise
    except ImportError as error:  # an extra is not installed, and the message says which
        raise ValueError(str(error)) from error


def read_records(paths: list[Path], title: str) -> Report:
    """One report of all files, in their order.

    Args:
        paths: JSON of a ``Record`` each, or of a ``Report``.
        title: of the whole.

    Returns:
        The report; a record has its file's name, with the folder where two files have the same.

    Raises:
        ValueError: if a file is missing, no JSON, or no record.
    """
    from secateur.records import Report

    stems = [path.stem for path in paths]
    named: dict[str, Record] = {}
    for path in paths:
        name = path.stem if stems.count(path.stem) == 1 else str(path.with_suffix(""))
        for inner, record in _read(path):
            whole = f"{name}: {inner}" if inner and len(paths) > 1 else inner or name
            if whole in named:
                raise ValueError(f"{path} is given twice")
            named[whole] = record
    return Report(title, tuple(named), tuple(named.values()))


def _read(path: Path) -> list[tuple[str, Record]]:
    from secateur.records import Record, Report

    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        value: Any = json_module.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON {type(value).__name__}, not a record of `secateur measure --json`")
    try:
        if "records" in value:
            many = Report.from_record(value)
            return list(zip(many.names, many.records, strict=True))
        return [("", Record.from_record(value))]
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a record of `secateur measure --json` ({error})") from error
