"""The first things a stranger meets: README, version, licence, change log, the two commands."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

import secateur as sc
from tests.structure.tree import ROOT

README = ROOT / "README.md"
MAKEFILE = ROOT / "Makefile"


def first_code_block(text: str) -> str:
    return re.search(r"^```\w*\n(.*?)^```", text, re.M | re.S).group(1)


def test_the_readme_opens_with_the_two_commands() -> None:
    text = README.read_text(encoding="utf-8")
    commands = [line.split("#")[0].strip() for line in first_code_block(text).splitlines()]
    assert commands == ["make demo", "make test"]
    assert text.index("make demo") < 700, "the commands come before the talk"


def test_one_version() -> None:
    project = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M).group(1)
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M).group(1)
    assert sc.__version__ == project == newest


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert len(text.splitlines()) > 200


def test_the_package_is_typed() -> None:
    assert (ROOT / "src" / "secateur" / "py.typed").is_file()


@pytest.mark.parametrize("what", ["criterion", "unit", "allocation", "schedule", "kernel"])
def test_contributing_says_how_to_add(what: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.search(rf"^## Adding an? {what}$", text, re.M)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_named_files_and_targets_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:src|csrc|tests|benchmarks|docs|examples|tools|\.ci)/[\w./-]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE.read_text(encoding="utf-8"), re.M))
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    assert {word for code in inline for word in re.findall(r"^make ([a-z]+)", code)} <= targets


def test_tests_run_on_one_thread() -> None:
    assert torch.get_num_threads() == 1


def test_check_runs_everything() -> None:
    line = re.search(r"^check:(.*?)##", MAKEFILE.read_text(encoding="utf-8"), re.M).group(1).split()
    everything = "lint types structure test doctest examples sanitizers tsan neon demo browser docs"
    assert line == everything.split()
    assert "make -k check" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_no_unpinned_torch_is_ever_installed() -> None:
    for name in ("Makefile", ".ci/run", "README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"pip3? install (?:-\S+ )*['\"]?torch(?![=\w])", text), name


def test_the_readme_tables_are_those_of_the_results() -> None:
    command = [sys.executable, "benchmarks/readme_table.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
