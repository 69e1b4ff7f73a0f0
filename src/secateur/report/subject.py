"""What is shown: a ``Record`` or a ``Report`` in, a checked ``Report`` out; and the extras that drawing needs."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TypeAlias

from secateur.records import Accuracy, Latency, Record, Report, Side

__all__ = ["Subject", "as_report", "figure_of_fit", "latency_at", "need", "timings"]

Subject: TypeAlias = Record | Report
Spread: TypeAlias = tuple[float, float]


def need(module: str) -> ModuleType:
    """Imports an optional dependency of this room.

    Args:
        module: its dotted name.

    Raises:
        ImportError: naming the extra that brings it, where it is not installed.

    Example:
        >>> need("json").__name__
        'json'
        >>> need("no_such_module")
        Traceback (most recent call last):
        ...
        ImportError: this part of the report needs no_such_module: pip install "secateur[report]"
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(f'this part of the report needs {package}: pip install "secateur[report]"') from error


def as_report(subject: Subject) -> Report:
    """One record becomes a report of one; a report is checked.

    Raises:
        ValueError: for a report without records, with names and records of different
            number, with a name twice, a chosen one that is not there, or for a record whose timings do not line up.

    Example:
        >>> as_report(Report("nothing", (), ()))
        Traceback (most recent call last):
        ...
        ValueError: report 'nothing' has no records: there is nothing to show
    """
    if isinstance(subject, Record):
        return as_report(Report(subject.sparse.name, (subject.sparse.name,), (subject,)))
    if not isinstance(subject, Report):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"a Record or a Report can be shown, not {type(subject).__name__}")
    if not subject.records:
        raise ValueError(f"report {subject.title!r} has no records: there is nothing to show")
    if subject.chosen is not None and subject.chosen not in subject.names:
        raise ValueError(f"report {subject.title!r}: chosen={subject.chosen!r} is none of its names {subject.names}")
    if len(subject.names) != len(subject.records):
        raise ValueError(
            f"report {subject.title!r}: {len(subject.names)} names for {len(subject.records)} records; give one each"
        )
    twice = sorted({name for name in subject.names if subject.names.count(name) > 1})
    if twice:
        raise ValueError(f"report {subject.title!r}: names {twice} occur twice; rows and colours need different names")
    for name, record in zip(subject.names, subject.records, strict=True):
        _check_timings(name, record)
    return subject


def _check_timings(name: str, record: Record) -> None:
    keys = [(row.batch, row.threads) for row in record.sparse.latency]
    dense = [(row.batch, row.threads) for row in record.dense.latency]
    if dense != keys or len(record.measured_speedup) != len(keys) or len(record.dense_self_ratio) != len(keys):
        raise ValueError(
            f"record {name!r}: (batch, threads) rows of the dense model {dense}, of the sparse model {keys}, "
            f"{len(record.measured_speedup)} speed-ups and {len(record.dense_self_ratio)} ratios of dense to itself "
            "do not line up; all four come from the same rounds"
        )


def figure_of_fit(side: Side) -> Accuracy | None:
    """The accuracy that tables and plots show: on ``test`` where there is one, else the last that was taken."""
    named = [row for row in side.accuracy if row.split == "test"]
    return (named or list(side.accuracy) or [None])[-1]


def timings(report: Report) -> list[tuple[int, int]]:
    """All (batch, threads) that some record was timed at, in ascending order."""
    return sorted({(row.batch, row.threads) for record in report.records for row in record.sparse.latency})


def latency_at(record: Record, batch: int, threads: int) -> tuple[Latency, Latency, float, Spread] | None:
    """(dense, sparse, speed-up, spread of dense against itself) at one batch, None where it was not timed."""
    rows = zip(record.dense.latency, record.sparse.latency, record.measured_speedup, strict=True)
    for index, (dense, sparse, speedup) in enumerate(rows):
        if (sparse.batch, sparse.threads) == (batch, threads):
            return dense, sparse, speedup, record.spread(index)
    return None
