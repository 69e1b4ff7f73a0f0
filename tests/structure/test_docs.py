"""The documentation says what stands: rooms, methods, commands."""

from __future__ import annotations

import re

import pytest

from docs.hooks.tables import TABLES, fill
from secateur.cli.app import COMMANDS
from secateur.core import ALLOCATIONS, CRITERIA, SCHEDULES, UNITS
from tests.structure.test_imports import ALLOWED
from tests.structure.tree import PACKAGE, ROOT

DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
KINDS = {"criteria": CRITERIA, "units": UNITS, "allocations": ALLOCATIONS, "schedules": SCHEDULES}


def rooms_listed(after: str, before: str) -> set[str]:
    """First cells of the table between two sentences of docs/design.md."""
    part = DESIGN.split(after)[1].split(before)[0]
    return {name.removesuffix(".py").rstrip("/") for name in re.findall(r"^\| `([\w./]+)` \|", part, re.M)}


def rooms_that_stand() -> set[str]:
    modules = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return {path.stem for path in modules}


def test_the_design_lists_the_rooms_that_stand_and_those_that_do_not() -> None:
    standing = rooms_listed("Standing:", "Missing, and not begun")
    missing = rooms_listed("Missing, and not begun", "Missing inside standing rooms")
    assert standing == rooms_that_stand() - {"__main__"}
    assert missing
    assert not missing & rooms_that_stand()
    assert standing <= set(ALLOWED)


@pytest.mark.parametrize("kind", KINDS)
def test_the_catalogue_has_every_row(kind: str) -> None:
    table = TABLES[kind]()
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(KINDS[kind])
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
    assert len(widths) == 1, "a cell breaks the table"


def test_the_catalogue_page_shows_every_table() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- table:(\w+) -->", page)) == set(TABLES)
    assert "<!-- table:" not in fill(page)


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(KeyError, match="spells"):
        fill("<!-- table:spells -->")


@pytest.mark.parametrize("name", ["CRITERIA", "ALLOCATIONS", "SCHEDULES"])
def test_every_method_has_formula_and_reference(name: str) -> None:
    table = {"CRITERIA": CRITERIA, "ALLOCATIONS": ALLOCATIONS, "SCHEDULES": SCHEDULES}[name]
    bare = [key for key, row in table.items() if not row.summary.strip() or not row.reference.strip()]
    assert bare == []


def test_every_command_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    described = re.findall(r"^secateur (\w+)", page.split("```")[1], re.M)
    assert described == [command.__name__ for command in COMMANDS]


@pytest.mark.parametrize("name", ["CRITERIA", "ALLOCATIONS"])
def test_every_method_is_weighed_against_the_others(name: str) -> None:
    """Which method for me: each criterion and allocation is named where one chooses; `l1` is magnitude."""
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    table = {"CRITERIA": CRITERIA, "ALLOCATIONS": ALLOCATIONS}[name]
    named = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", page)) | {"l1"}
    assert set(table) - named - {"magnitude"} == set()
    assert "Magnitude (unit `weight`)" in page
