"""What every test runs under: one thread, reproducible examples, and no skip that nobody allowed."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import MutableMapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

os.environ["SECATEUR_CACHE"] = "off"  # what another run measured must not decide here; tests of the cache name a folder
ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")


@dataclass(frozen=True)
class AllowedSkip:
    """One line of ``allowed_skips.txt``."""

    nodeid: str
    reason: str
    why: str

    def covers(self, nodeid: str, reason: str) -> bool:
        return fnmatchcase(nodeid, self.nodeid) and fnmatchcase(reason, self.reason)


def pytest_collection_finish() -> None:
    """Doctests are collected by import mode importlib, which makes packages anew beside modules that are there already.

    The new package lacks them as attributes, and what a test replaces by its dotted path is not found.
    """
    link_submodules(sys.modules, "secateur")


def link_submodules(modules: MutableMapping[str, ModuleType], package: str) -> None:
    """Every imported module is an attribute of the package that it is in, unless something else has the name."""
    for name, module in list(modules.items()):
        parent, _, leaf = name.rpartition(".")
        if name.startswith(f"{package}.") and parent in modules and not hasattr(modules[parent], leaf):
            setattr(modules[parent], leaf, module)


def read_allowed_skips(path: Path) -> list[AllowedSkip]:
    """Lines ``test glob | reason glob | why``; ``#`` starts a comment line."""
    allowed: list[AllowedSkip] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split(" | ")]
        if len(fields) != 3 or not all(fields):
            raise pytest.UsageError(f"{path.name}:{number}: {line!r} is not 'test glob | reason glob | why'")
        allowed.append(AllowedSkip(*fields))
    return allowed


class SkipList:
    """Collects the skips of a run; in CI one that is not on the list fails the run."""

    def __init__(self, allowed: list[AllowedSkip], strict: bool) -> None:
        self.allowed = allowed
        self.strict = strict
        self.skips: list[tuple[str, str]] = []

    def unlisted(self) -> list[tuple[str, str]]:
        return [skip for skip in self.skips if not any(line.covers(*skip) for line in self.allowed)]

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        self.skips.append((report.nodeid, reason.removeprefix("Skipped: ")))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.strict and self.unlisted() and session.exitstatus in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.skips:
            terminalreporter.write_line("no test was skipped")
            return
        terminalreporter.section(f"{len(self.skips)} skipped, and why")
        for reason, count in Counter(reason for _, reason in self.skips).most_common():
            terminalreporter.write_line(f"{count:4d}  {reason}")
        for nodeid, reason in self.unlisted():
            verdict = "FAILED" if self.strict else "would fail in CI"
            terminalreporter.write_line(f"{verdict}: skip not in {ALLOWED_SKIPS.name}: {nodeid}: {reason}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    # Before anything imports torch, which reads it once. The processes that tests start inherit it.
    os.environ["OMP_NUM_THREADS"] = "1"
    settings.register_profile("secateur", deadline=None, max_examples=25, derandomize=True, database=None)
    settings.load_profile("secateur")
    if not hasattr(config, "workerinput"):  # the workers of pytest-xdist report to their controller
        strict = os.environ.get("CI", "").lower() in ("1", "true")
        config.pluginmanager.register(SkipList(read_allowed_skips(ALLOWED_SKIPS), strict), "skip-list")
