"""The code that README and docs show is run: every ```python block of a page, in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest

from tests.structure.tree import project_files, relative

FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def blocks(text: str) -> list[tuple[int, str]]:
    """(line, code) of every block that promises to run; ``py`` marks one that does not."""
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in FENCE.finditer(text)]


def run_page(text: str, name: str) -> dict[str, object]:
    namespace: dict[str, object] = {"__name__": "page"}
    for line, code in blocks(text):
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)
    return namespace


PAGES = [p for p in project_files() if p.suffix == ".md" and blocks(p.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    assert "__builtins__" in run_page(page.read_text(encoding="utf-8"), str(page))


def test_readme_and_quickstart_show_code() -> None:
    assert {"README.md", "docs/quickstart.md"} <= {relative(page) for page in PAGES}


def test_blocks_share_a_namespace_and_fail_with_the_line_of_the_page() -> None:
    page = "# Page\n\n```python\na = 1\n```\n\n```py\nnonsense(\n```\n\n```python\nb = a + 1\n```\n"
    assert run_page(page, "page.md")["b"] == 2
    with pytest.raises(AssertionError) as failure:
        run_page(page + "```python\nassert b == 3\n```\n", "page.md")
    assert failure.traceback[-1].lineno + 1 == 15
