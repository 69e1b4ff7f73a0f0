"""``secateur methods``: every row of every table, readable and as JSON."""

from __future__ import annotations

import json
import re

import pytest

from secateur.core import ALLOCATIONS, CRITERIA, SCHEDULES, UNITS
from secateur.core.solvers import SOLVERS
from tests.cli.conftest import Run

TABLES = {"criteria": CRITERIA, "units": UNITS, "allocations": ALLOCATIONS, "schedules": SCHEDULES, "solvers": SOLVERS}


def test_every_name_is_listed_with_its_formula(run: Run) -> None:
    printed = run("methods").stdout
    for title, table in TABLES.items():
        assert f"\n{title}\n" in "\n" + printed
        section = ("\n" + printed).split(f"\n{title}\n")[1]  # a criterion and a schedule may share a name
        for name, entry in table.items():
            row = next(line for line in section.splitlines() if line.split("  ")[0] == name)
            assert entry.summary in row


def test_json_has_what_the_tables_hold(run: Run) -> None:
    found = json.loads(run("methods", "--json").stdout)
    assert list(found) == list(TABLES)
    for title, table in TABLES.items():
        named = {row["name"]: row for row in found[title]}
        assert set(named) - {"2 of 4"} == set(table)
        assert all(row["formula"] for row in found[title])
    snip = next(row for row in found["criteria"] if row["name"] == "snip")
    assert (snip["level"], snip["data"], snip["batches"]) == ("weight", "batches", 1)
    assert "1810.02340" in snip["reference"]
    cubic = next(row for row in found["schedules"] if row["name"] == "cubic")
    assert cubic["options"] == ["power=3.0"]


def test_one_table_alone(run: Run) -> None:
    assert list(json.loads(run("methods", "units", "--json").stdout)) == ["units"]
    assert "criteria" not in run("methods", "units").stdout


def test_another_table_is_refused(run: Run) -> None:
    assert "criteria" in run("methods", "critera", code=2).stderr


@pytest.mark.parametrize("columns", [80, 200])
def test_a_narrow_window_hides_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = re.sub("\x1b\\[[0-9;]*m", "", run("methods", "criteria").stdout).splitlines()
    assert max(map(len, lines)) <= columns
    words = set("\n".join(lines).split())
    for name, entry in CRITERIA.items():
        assert {name, *entry.summary.split(), *entry.reference.split()} <= words
    assert ("reference" in lines[1].split()) == (columns == 200)  # below the formula where the window is narrow
