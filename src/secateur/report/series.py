"""What each plot shows, as plain numbers: the page and the matplotlib figures draw the same ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from secateur.records import Latency, Record, Report, SchedulePoint, Side
from secateur.report.subject import figure_of_fit, latency_at, timings

__all__ = [
    "DARK",
    "DENSE",
    "LIGHT",
    "SYMBOLS",
    "Bars",
    "Layers",
    "Point",
    "Run",
    "accuracy_points",
    "dense_points",
    "latency_bars",
    "layer_rows",
    "networks",
    "schedule_runs",
]

# Okabe and Ito (2008), which stays apart for colour-blind readers; its yellow is darkened on
# white and its blue lightened on black; the last two are ours. Symbols repeat the distinction without colour.
LIGHT = ("#0072B2", "#D55E00", "#009E73", "#B6508A", "#C98A00", "#3C9BD6", "#7A6A00", "#5B4B9E", "#8C1D18", "#5F8F00")
DARK = ("#5AA9E6", "#FF8A4C", "#2CC79A", "#E79BC4", "#F2B63C", "#9ADCFF", "#E6DC5A", "#B3A6F2", "#FF6B64", "#A8DB4E")
DENSE = "#8A8F98"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")


@dataclass(frozen=True)
class Point:
    """One model in the plane of compression and accuracy; ``record`` is -1 for a dense reference."""

    record: int
    name: str
    compression: float
    top1: float
    standard_error: float


@dataclass(frozen=True)
class Run:
    """The mask updates of one record as they happened."""

    record: int
    name: str
    points: tuple[SchedulePoint, ...]


@dataclass(frozen=True)
class Bars:
    """The timings of one network at one (batch, threads): per record dense, sparse, speed-up, its spread."""

    network: str
    batch: int
    threads: int
    rows: tuple[tuple[int, str, Latency, Latency, float, tuple[float, float]], ...]


@dataclass(frozen=True)
class Layers:
    """One layer of one record: dense counts and what is kept of them."""

    name: str
    kind: str
    parameters: int
    kept: int
    macs: int
    macs_kept: int


def accuracy_points(report: Report) -> list[Point]:
    """Every record with an accuracy and a finite compression ratio."""
    points: list[Point] = []
    for index, (name, record) in enumerate(zip(report.names, report.records, strict=True)):
        fit = figure_of_fit(record.sparse)
        if fit is not None and math.isfinite(record.compression):
            points.append(Point(index, name, record.compression, fit.top1, fit.standard_error))
    return points


def dense_points(report: Report) -> list[Point]:
    """Each dense model once, at compression 1."""
    return [
        Point(-1, side.name, 1.0, fit.top1, fit.standard_error)
        for side in _dense_sides(report)
        for fit in [figure_of_fit(side)]
        if fit is not None
    ]


def _dense_sides(report: Report) -> Iterator[Side]:
    seen: set[tuple[object, ...]] = set()
    for record in report.records:
        key = (record.dense.name, record.dense.parameters, record.dense.accuracy)
        if key not in seen:
            seen.add(key)
            yield record.dense


def layer_rows(record: Record) -> list[Layers]:
    """Layers of the dense model in order, beside what the sparse one keeps of each.

    A layer that is gone keeps nothing; one that only the sparse model has stands at the end.
    """
    sparse = {row.name: row for row in record.sparse.layers}
    rows: list[Layers] = []
    for dense in record.dense.layers:
        own = sparse.pop(dense.name, None)
        kept, macs_kept = (0, 0) if own is None else (own.kept, own.macs_kept)
        rows.append(Layers(dense.name, dense.kind, dense.parameters, kept, dense.macs, macs_kept))
    rows.extend(Layers(row.name, row.kind, 0, row.kept, 0, row.macs_kept) for row in sparse.values())
    return rows


def schedule_runs(report: Report) -> list[Run]:
    """The records that have a schedule."""
    pairs = zip(report.names, report.records, strict=True)
    return [Run(i, name, record.schedule) for i, (name, record) in enumerate(pairs) if record.schedule]


def networks(report: Report) -> dict[str, list[tuple[int, str, Record]]]:
    """(index, name, record) by the dense model's name: bars of a small and a large network share no axis."""
    found: dict[str, list[tuple[int, str, Record]]] = {}
    for index, (name, record) in enumerate(zip(report.names, report.records, strict=True)):
        found.setdefault(record.dense.name, []).append((index, name, record))
    return found


def latency_bars(report: Report) -> list[Bars]:
    """One set of bars per network and (batch, threads)."""
    sets: list[Bars] = []
    for network, members in networks(report).items():
        for batch, threads in timings(report):
            rows = [
                (index, name, *found)
                for index, name, record in members
                for found in [latency_at(record, batch, threads)]
                if found is not None
            ]
            if rows:
                sets.append(Bars(network, batch, threads, tuple(rows)))
    return sets
