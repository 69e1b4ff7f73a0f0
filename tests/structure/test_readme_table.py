"""The tables of the pages come from the JSON of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.readme_table import BEGIN, END, main, render_page

RESULT = {
    "title": "Digits",
    "columns": ["method", "accuracy %", "bytes"],
    "rows": [["l1", 97.253, 123456], ["a|b", None, 7]],
    "environment": {"cpu": "some", "threads": 1},
    "note": "Five seeds.",
}
PAGE = f"# Title\n\n{BEGIN}\nold\n{END}\n\nrest\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "digits.json").write_text(json.dumps(RESULT))
    return folder


def test_the_table_replaces_what_was_there(results: Path) -> None:
    page = render_page(PAGE, results)
    expected = (
        "**Digits**\n\n"
        "| method | accuracy % | bytes |\n"
        "|---|--:|--:|\n"
        "| l1 | 97.25 | 123,456 |\n"
        "| a\\|b | - | 7 |\n\n"
        "Five seeds. Measured on: cpu some, threads 1. (`benchmarks/results/digits.json`)"
    )
    assert page == f"# Title\n\n{BEGIN}\n\n{expected}\n\n{END}\n\nrest\n"
    assert render_page(page, results) == page


def test_a_page_of_a_few_shows_those_in_their_order(results: Path) -> None:
    (results / "letters.json").write_text(json.dumps(RESULT | {"title": "Letters"}))
    (results / "more.json").write_text(json.dumps(RESULT | {"title": "More"}))
    page = render_page(PAGE, results, ["more", "digits", "not measured yet"])
    assert [line for line in page.splitlines() if line.startswith("**")] == ["**More**", "**Digits**"]
    assert render_page(PAGE, results).count("**") == 6


def test_a_long_table_is_turned_for_a_page_of_a_few(results: Path) -> None:
    rows = [["dense", 0, 91.5, None], ["l1", 50, 60.0, 70.25], ["l1", 30, 80.0, 81.0], ["snip", 30, 80.5, 79.0]]
    columns, how = ["criterion", "gone, %", "at once", "refitted"], {"row": 0, "column": 1, "cells": [2, 3]}
    (results / "long.json").write_text(json.dumps(RESULT | {"columns": columns, "rows": rows, "headline": how}))
    few = render_page(PAGE, results, ["long"])
    assert "**Digits: at once / refitted**\n\n| criterion | gone, %: 30 | gone, %: 50 |\n|---|---|---|\n" in few
    assert "| snip | 80.5 / 79 | - |\n| l1 | 80 / 81 | 60 / 70.25 |\n\n" in few
    assert "dense" not in few
    assert "| l1 | 50 | 60 | 70.25 |" in render_page(PAGE, results), "the page of all has every line"


def test_check_sees_a_typed_number(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(PAGE)
    arguments = ["--page", str(page), "--results", str(results)]
    assert main([*arguments, "--check"]) == 1
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    page.write_text(page.read_text().replace("97.25", "99.99"))
    assert main([*arguments, "--check"]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rows": [["l1", 1.0]]}, "has not the 3 cells"), ({"note": ...}, r"keys \['note'\] are missing")],
)
def test_a_wrong_result_is_refused(results: Path, change: dict, message: str) -> None:
    broken = {key: value for key, value in (RESULT | change).items() if value is not ...}
    (results / "digits.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match=message):
        render_page(PAGE, results)


def test_a_page_without_markers_is_refused(results: Path) -> None:
    with pytest.raises(ValueError, match="needs one line"):
        render_page("# Title\n", results)
