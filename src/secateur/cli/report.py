"""``secateur report``: what was measured, as one page, and as pictures."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from secateur.records import Explanation, Record, Report, Rivals

__all__ = ["read_records", "report"]

_KINDS = "`secateur measure --json`, `secateur pack --json` or `secateur bench --json`"


def report(
    records: Annotated[list[Path], typer.Argument(help="Files of `secateur measure | pack | bench --json`, mixed.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    png: Annotated[Path | None, typer.Option("--png", help="A folder for the plots as PNG files too.")] = None,
    title: Annotated[str, typer.Option("--title", help="Stands above the page.")] = "Dense and sparse",
) -> None:
    """Draw records as one HTML page.

    The page is a single file that opens anywhere, without a network. Records of `secateur measure` are named by their
    files. Those of `secateur pack` and `secateur bench` become a part on speed per model: runtimes, layer by layer,
    the roofline.

    Example: secateur report record.json explain.json bench.json -o report.html
    """
    from secateur.report import KINDS, figure, to_html

    found, speed = read_records(records, title)
    if png is not None and not found.records:
        raise ValueError("--png: pictures are drawn of records of `secateur measure --json`, and none is given")
    try:
        print(f"wrote {to_html(found, output, speed=speed)}")
        for kind in KINDS if png is not None else ():
            try:
                print(f"wrote {figure(found, kind, Path(png or '') / f'{kind}.png')}")
            except ValueError as error:
                print(f"left out {kind}.png: {str(error).rpartition(': ')[2]}")
    except ModuleNotFoundError:
        raise
    except ImportError as error:  # an extra is not installed, and the message says which
        raise ValueError(str(error)) from error


def read_records(paths: list[Path], title: str) -> tuple[Report, list[Explanation | Rivals]]:
    """One report of all files, in their order, and what they say of speed.

    Args:
        paths: JSON of a ``Record`` each, of a ``Report``, of an ``Explanation``, or of a list of ``Rivals``: their
            content tells.
        title: of the whole.

    Returns:
        The report; a record has its file's name, with the folder where two files have the same. And the records of
        speed; one without a title has its file's name.

    Raises:
        ValueError: if a file is missing, no JSON, no record, or given twice.
    """
    from secateur.records import Report

    stems = [path.stem for path in paths]
    named: dict[str, Record] = {}
    speed: list[Explanation | Rivals] = []
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise ValueError(f"{path} is given twice")
        name = path.stem if stems.count(path.stem) == 1 else str(path.with_suffix(""))
        value = _json(path)
        timed = _speed_of(value, path)
        speed += timed
        for inner, record in [] if timed else _records_of(value, path):
            whole = f"{name}: {inner}" if inner and len(paths) > 1 else inner or name
            if whole in named:
                raise ValueError(f"{path} is given twice")
            named[whole] = record
    return Report(title, tuple(named), tuple(named.values())), speed


def _json(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        return json_module.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON ({error})") from error


def _speed_of(value: Any, path: Path) -> list[Explanation | Rivals]:
    """What `pack` and `bench` wrote; nothing where the content is of another kind."""
    from dataclasses import replace

    from secateur.records import Explanation, Rivals
    from secateur.report.speed_check import check_speed

    one = isinstance(value, dict) and {"layers", "other_us", "us"} <= set(value)
    races: list[Any] = value if isinstance(value, list) else [value]
    race = bool(races) and all(isinstance(each, dict) and {"rows", "turn_s"} <= set(each) for each in races)
    if not one and not race:
        return []
    try:
        made = [Explanation.from_record(races[0])] if one else [Rivals.from_record(each) for each in races]
        for each in made:
            check_speed(each)
    except (ValueError, TypeError, AttributeError) as error:
        command = "pack" if one else "bench"
        raise ValueError(f"{path}: not what `secateur {command} --json` writes ({error})") from error
    return [replace(each, title=each.title or path.stem) for each in made]


def _records_of(value: Any, path: Path) -> list[tuple[str, Record]]:
    from secateur.records import Record, Report

    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON {type(value).__name__}, not a record of {_KINDS}")
    try:
        if "records" in value:
            many = Report.from_record(value)
            return list(zip(many.names, many.records, strict=True))
        return [("", Record.from_record(value))]
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a record of {_KINDS} ({error})") from error
