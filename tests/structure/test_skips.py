"""A skip that nobody allowed turns CI red; a listed one does not; every line of the list still points at a test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.conftest import link_submodules
from tests.structure.tree import ROOT, files, relative

CONFTEST = ROOT / "tests" / "conftest.py"
LISTED = "test_one.py::test_gpu | no CUDA device* | the graphics card is not on every machine\n"
TEST_FILE = """
import pytest

def test_ok():
    assert True

@pytest.mark.skip(reason="no CUDA device here")
def test_gpu():
    raise AssertionError
"""
SURPRISE = """
@pytest.mark.skip(reason="later")
def test_surprise():
    raise AssertionError
"""
WHOLE_MODULE = "import pytest\npytest.skip('not today', allow_module_level=True)\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(CONFTEST, tmp_path / "conftest.py")
    (tmp_path / "allowed_skips.txt").write_text("# comment\n\n" + LISTED)
    (tmp_path / "test_one.py").write_text(TEST_FILE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def run(folder: Path, *arguments: str, ci: str = "true") -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "CI"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment | {"CI": ci}, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_listed_skip_passes_and_is_counted(project: Path) -> None:
    done = run(project)
    assert done.returncode == 0, done.stdout
    assert "1 skipped, and why" in done.stdout
    assert "   1  no CUDA device here" in done.stdout


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_a_surprise_skip_turns_ci_red(project: Path, workers: tuple[str, ...]) -> None:
    (project / "test_one.py").write_text(TEST_FILE + SURPRISE)
    done = run(project, *workers)
    assert done.returncode == 1, done.stdout
    assert "FAILED: skip not in allowed_skips.txt: test_one.py::test_surprise: later" in done.stdout
    assert "test_gpu: no CUDA" not in done.stdout


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_a_skipped_module_turns_ci_red(project: Path, workers: tuple[str, ...]) -> None:
    (project / "test_two.py").write_text(WHOLE_MODULE)
    done = run(project, *workers)
    assert done.returncode == 1, done.stdout
    assert "not today" in done.stdout


def test_outside_of_ci_a_surprise_skip_is_only_shown(project: Path) -> None:
    (project / "test_one.py").write_text(TEST_FILE + SURPRISE)
    done = run(project, ci="")
    assert done.returncode == 0, done.stdout
    assert "would fail in CI: skip not in allowed_skips.txt" in done.stdout


def test_a_line_without_a_why_is_refused(project: Path) -> None:
    (project / "allowed_skips.txt").write_text("test_one.py::test_gpu | no CUDA*\n")
    done = run(project)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "is not 'test glob | reason glob | why'" in done.stdout + done.stderr


def test_every_allowed_skip_names_a_test_file_that_exists() -> None:
    lines = (ROOT / "tests" / "allowed_skips.txt").read_text().splitlines()
    globs = [line.split("::")[0].split(" | ")[0] for line in lines if line.strip() and not line.startswith("#")]
    tests = [relative(path) for path in files("tests")]
    assert [glob for glob in globs if not any(fnmatchcase(test, glob) for test in tests)] == []


def test_modules_are_found_by_dotted_paths_when_their_package_was_imported_anew() -> None:
    """What collecting doctests leaves behind: a package without the modules that are in it."""
    new, deep, taken, other = (ModuleType(name) for name in ("new", "deep", "taken", "other"))
    package = SimpleNamespace(taken="a function")
    modules: dict[str, Any] = {
        "kit": package,
        "kit.new": new,
        "kit.new.deep": deep,
        "kit.taken": taken,
        "kite.x": other,
    }
    link_submodules(modules, "kit")
    assert package.new is new
    assert package.new.deep is deep
    assert package.taken == "a function"
    assert not hasattr(package, "x")
