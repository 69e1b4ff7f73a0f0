"""Write the result tables from ``benchmarks/results/*.json``: all on docs/results.md, a few in README.md.

    python benchmarks/readme_table.py            # rewrite both pages between their markers
    python benchmarks/readme_table.py --check    # exit 1 if one of them is not what the results say

One result file is one table:

    {"title": "...", "columns": ["method", ...], "rows": [["magnitude", 91.2, ...], ...],
     "environment": {"cpu": "...", ...}, "note": "..."}

With ``"headline": {"row": 0, "column": 1, "cells": [2, 4]}`` README.md shows a shorter table: a row for each value of
the first column, a column for each value of the second, and in every cell what the others say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["HEADLINES", "main", "render_page", "render_table"]

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- results:begin -->"
END = "<!-- results:end -->"
HEADLINES = (
    "runtime_networks",
    "resnet20_recovery",
    "compress_goals",
    "resnet20_oneshot_weights",
    "resnet20_oneshot_channels",
    "language_model",
)
"""Results that README.md shows."""
NEEDED = ("title", "columns", "rows", "environment", "note")


def read_result(path: Path) -> dict[str, Any]:
    """A result file, with the keys that a table needs."""
    result = json.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in NEEDED if key not in result]
    if missing:
        raise ValueError(f"{path.name}: keys {missing} are missing; a result has {list(NEEDED)}")
    wrong = [row for row in result["rows"] if len(row) != len(result["columns"])]
    if wrong:
        raise ValueError(f"{path.name}: row {wrong[0]} has not the {len(result['columns'])} cells of its columns")
    return result


def cell(value: Any) -> str:
    """Numbers to four significant digits, thousands apart; what was not measured is a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|")


def render_table(result: dict[str, Any], source: str) -> str:
    """Markdown: title, table, note, where it was measured and which file says so.

    Example:
        >>> result = {
        ...     "title": "T",
        ...     "columns": ["method", "%"],
        ...     "rows": [["l1", 91.25]],
        ...     "environment": {},
        ...     "note": "n.",
        ... }
        >>> print(render_table(result, "t.json"))
        **T**
        <BLANKLINE>
        | method | % |
        |---|--:|
        | l1 | 91.25 |
        <BLANKLINE>
        n. (`t.json`)
    """
    columns, rows = result["columns"], result["rows"]
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join("--:" if n else "---" for n in numeric) + "|"]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    taken = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    foot = " ".join(
        part for part in (result["note"], f"Measured on: {taken}." if taken else "", f"(`{source}`)") if part
    )
    return "\n".join([f"**{result['title']}**", "", *lines, "", foot])


def in_short(result: dict[str, Any]) -> dict[str, Any]:
    """A long table turned to one line for each method, best first; lines without a figure are left out.

    Example:
        >>> rows = [["a", 30, 1.0, 2.0], ["b", 30, 5.0, 6.0], ["b", 50, 3.0, 4.0], ["c", 30, None, None]]
        >>> columns = ["method", "removed, %", "before", "after"]
        >>> long = {"title": "T", "columns": columns, "rows": rows, "environment": {}, "note": "n."}
        >>> short = in_short(long | {"headline": {"row": 0, "column": 1, "cells": [2, 3]}})
        >>> short["title"], short["columns"]
        ('T: before / after', ['method', 'removed, %: 30', 'removed, %: 50'])
        >>> short["rows"]
        [['b', '5 / 6', '3 / 4'], ['a', '1 / 2', None]]
    """
    how, columns = result["headline"], result["columns"]
    name, by, cells = how["row"], how["column"], how["cells"]
    found: dict[Any, dict[Any, list[float]]] = {}
    for row in result["rows"]:
        if None not in (values := [row[at] for at in cells]):
            found.setdefault(row[name], {})[row[by]] = values
    across = sorted({one for each in found.values() for one in each})
    order = sorted(found, key=lambda key: [-found[key].get(one, [0.0])[0] for one in across])
    texts = {key: {one: " / ".join(map(cell, values)) for one, values in found[key].items()} for key in order}
    return result | {
        "title": f"{result['title']}: {' / '.join(columns[at] for at in cells)}",
        "columns": [columns[name], *(f"{columns[by]}: {one}" for one in across)],
        "rows": [[key, *(texts[key].get(one) for one in across)] for key in order],
    }


def render_page(page: str, folder: Path, only: Sequence[str] | None = None) -> str:
    """The page with the tables of ``folder``, or those few in their order, in place of what its markers hold."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page needs one line {BEGIN} and one line {END} after it")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    found = {path.stem: path for path in sorted(folder.glob("*.json"))}
    results = {name: read_result(found[name]) for name in (found if only is None else only) if name in found}
    tables = [
        render_table(
            in_short(result) if only is not None and "headline" in result else result,
            f"{folder.parent.name}/{folder.name}/{name}.json",
        )
        for name, result in results.items()
    ]
    body = "\n\n".join(tables) if tables else "No results yet: run the scripts of `benchmarks/`."
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the pages, or say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    parser.add_argument("--page", type=Path, help="this page alone, with every table")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    pages = {ROOT / "README.md": HEADLINES, ROOT / "docs" / "results.md": None}
    stale = 0
    for path, only in pages.items() if options.page is None else [(options.page, None)]:
        page = path.read_text(encoding="utf-8")
        wanted = render_page(page, options.results, only)
        if not options.check:
            path.write_text(wanted, encoding="utf-8")
        elif page != wanted:
            print(f"{path.name} does not show benchmarks/results: run `make readme`", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
