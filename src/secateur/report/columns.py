"""The headline table as columns of text: what the terminal and the page both print, written once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from secateur.records import Record, Report
from secateur.report import numbers
from secateur.report.subject import figure_of_fit, latency_at, timings

__all__ = ["LEGEND", "Column", "Group", "cell_groups", "notes", "verdicts"]

LEGEND = (
    "accuracy: ± one standard error; units, targets, all: share removed of units, of target weights, of all "
    "parameters; bytes: plain dense checkpoint → this library's file, beside the plain "
    "sparse checkpoint gzipped; compression: parameters / kept, direct / effective; theory: MACs / kept MACs; "
    "latency: dense median → sparse median [quartiles]; speed-up: measured "
    "[dense against itself, round by round]"
)


@dataclass(frozen=True)
class Column:
    """One column: heading, unit (or what the numbers mean), one cell per record."""

    heading: str
    unit: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Columns that stay together when the table has to be split."""

    part: Literal["fit", "size", "time"]
    columns: tuple[Column, ...]


def cell_groups(report: Report) -> list[Group]:
    """Groups of columns in reading order: fit, size (bytes, compute), then one group per (batch, threads)."""

    def column(heading: str, unit: str, cell: Callable[[Record], str]) -> Column:
        return Column(heading, unit, tuple(cell(record) for record in report.records))

    fit = (
        column("accuracy", "%", _accuracy),
        column("units", "%", lambda r: numbers.percent(r.shares.units)),
        column("targets", "%", lambda r: numbers.percent(r.shares.target_weights)),
        column("all", "%", lambda r: numbers.percent(r.shares.all_parameters)),
    )
    size = (
        column("bytes", "plain → ours", _bytes),
        column("gzip", "bytes", lambda r: numbers.data_size(r.sparse.sizes.gzip_bytes)),
        column("compression", "direct / eff.", _compression),
    )
    compute = (
        column("MACs", "per sample", _macs),
        column("theory", "×", lambda r: numbers.three(r.theoretical_speedup)),
    )
    groups = [Group("fit", fit), Group("size", size), Group("size", compute)]
    for batch, threads in timings(report):
        unit = f"ms, {threads} thread{'s' if threads > 1 else ''}"
        groups.append(
            Group(
                "time",
                (
                    column(f"batch {batch}", unit, lambda r, b=batch, t=threads: _latency(r, b, t)),
                    column("speed-up", "×", lambda r, b=batch, t=threads: _speedup(r, b, t)),
                ),
            )
        )
    return groups


def notes(report: Report) -> list[tuple[tuple[str, ...], str]]:
    """(names, note), each note once, in the order in which they first appear."""
    return _shared(report, lambda note: note)


def verdicts(report: Report) -> list[tuple[tuple[str, ...], str]]:
    """(names, verdict): what stands before the colon of a note, once for all the records that share it.

    For a table, which shows the figures behind the colon anyway; notes without a verdict are left out.
    """
    return _shared(report, lambda note: note.partition(": ")[0] if ": " in note else "")


def _shared(report: Report, part: Callable[[str], str]) -> list[tuple[tuple[str, ...], str]]:
    who: dict[str, list[str]] = {}
    for name, record in zip(report.names, report.records, strict=True):
        for note in dict.fromkeys(filter(None, map(part, record.notes))):
            who.setdefault(note, []).append(name)
    return [(tuple(names), note) for note, names in who.items()]


def _accuracy(record: Record) -> str:
    return numbers.accuracy_change(figure_of_fit(record.dense), figure_of_fit(record.sparse))


def _bytes(record: Record) -> str:
    return f"{numbers.data_size(record.dense.sizes.plain_bytes)} → {numbers.data_size(record.sparse.sizes.file_bytes)}"


def _compression(record: Record) -> str:
    return f"{numbers.three(record.compression)} / {numbers.three(record.effective_compression)}"


def _macs(record: Record) -> str:
    return f"{numbers.quantity(record.dense.macs)} → {numbers.quantity(record.sparse.macs_kept)}"


def _latency(record: Record, batch: int, threads: int) -> str:
    row = latency_at(record, batch, threads)
    return numbers.MISSING if row is None else numbers.latency_change(row[0], row[1])


def _speedup(record: Record, batch: int, threads: int) -> str:
    row = latency_at(record, batch, threads)
    return numbers.MISSING if row is None else numbers.speedup(row[2], row[3])
