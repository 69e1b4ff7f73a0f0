"""The tables of the page: headings and rows of text, ready to be set."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass

from secateur.records import Accuracy, Environment, Record, Report
from secateur.report import numbers
from secateur.report.columns import cell_groups
from secateur.report.series import layer_rows
from secateur.report.subject import figure_of_fit

__all__ = ["Grid", "agreement_grid", "cost_grid", "environments", "fit_grid", "headline_grids", "layer_grid", "plans"]


@dataclass(frozen=True)
class Grid:
    """A table: (heading, unit) pairs, and rows of (record, name, cells)."""

    name: str
    headings: tuple[tuple[str, str], ...]
    rows: tuple[tuple[int, str, tuple[str, ...]], ...]
    dots: bool = True
    """Whether a row has the colour of its record."""


def headline_grids(report: Report) -> list[Grid]:
    """The two tables of the headline: fit and size; time, where it was measured."""
    grids: list[Grid] = []
    for timed, groups in itertools.groupby(cell_groups(report), key=lambda group: group.part == "time"):
        columns = [column for group in groups for column in group.columns]
        cells = zip(*(column.cells for column in columns), strict=True)
        rows = tuple((i, name, tuple(row)) for i, (name, row) in enumerate(zip(report.names, cells, strict=True)))
        heads = tuple((column.heading, column.unit) for column in columns)
        grids.append(Grid("time" if timed else "fit and size", heads, rows))
    return grids


def fit_grid(report: Report) -> Grid | None:
    """Accuracy, NLL and ECE on every data set that both models were measured on."""
    rows: list[tuple[int, str, tuple[str, ...]]] = []
    for index, (name, record) in enumerate(zip(report.names, report.records, strict=True)):
        dense = {row.split: row for row in record.dense.accuracy}
        rows.extend((index, name, _fit(dense.get(own.split), own)) for own in record.sparse.accuracy)
    heads = (("split", ""), ("samples", ""), ("accuracy", "%"), ("NLL", "nats"), ("ECE", "% points"), ("bins", ""))
    return Grid("fit", heads, tuple(rows)) if rows else None


def _fit(dense: Accuracy | None, own: Accuracy) -> tuple[str, ...]:
    if dense is None:
        change, nll, ece = numbers.accuracy(own), f"{own.nll:.4f}", numbers.percent(own.ece, 2)
    else:
        change, nll = numbers.accuracy_change(dense, own), f"{dense.nll:.4f} → {own.nll:.4f}"
        ece = f"{numbers.percent(dense.ece, 2)} → {numbers.percent(own.ece, 2)}"
    return own.split, f"{own.samples:,}", change, nll, ece, str(own.bins)


def agreement_grid(report: Report) -> Grid | None:
    """Agreement with the dense model, negative flips and divergence."""
    rows = tuple(
        (
            index,
            name,
            (f"{a.samples:,}", numbers.percent(a.agreement), numbers.percent(a.negative_flips, 2), f"{a.kl:.4f}"),
        )
        for index, (name, record) in enumerate(zip(report.names, report.records, strict=True))
        for a in [record.agreement]
        if a is not None
    )
    heads = (("samples", ""), ("same answer", "%"), ("negative flips", "%"), ("KL(dense ‖ sparse)", "nats"))
    return Grid("agreement", heads, rows) if rows else None


def cost_grid(report: Report) -> Grid | None:
    """What training took, and joules per call where the machine's counters could be read."""
    rows = tuple(
        (index, name, _cost(record))
        for index, (name, record) in enumerate(zip(report.names, report.records, strict=True))
        if record.training is not None or record.sparse.energy
    )
    heads = (("training", "s"), ("processor", "core-s"), ("training", "J"), ("inference", "J per call, dense → sparse"))
    return Grid("cost", heads, rows) if rows else None


def _cost(record: Record) -> tuple[str, ...]:
    training, dense = record.training, {row.batch: row for row in record.dense.energy}
    times = ("", "", "") if training is None else (training.wall_s, training.core_s, training.joules)
    calls = [
        f"{numbers.three(dense[own.batch].joules) + ' → ' if own.batch in dense else ''}{numbers.three(own.joules)}"
        f" (batch {own.batch}, {own.source})"
        for own in record.sparse.energy
    ]
    shown = [numbers.MISSING if value in ("", None) else numbers.three(float(value)) for value in times]
    return *shown, "; ".join(calls) or numbers.MISSING


def layer_grid(record: Record, index: int) -> Grid:
    """One record's layers in figures."""
    shapes = {row.name: " × ".join(map(str, row.shape)) for row in (*record.sparse.layers, *record.dense.layers)}
    rows = tuple(
        (
            index,
            row.name,
            (
                row.kind,
                shapes[row.name],
                f"{row.parameters:,}",
                f"{row.kept:,}",
                numbers.percent(row.kept / row.parameters if row.parameters else None),
                f"{row.macs:,}",
                f"{row.macs_kept:,}",
                numbers.percent(row.macs_kept / row.macs if row.macs else None),
            ),
        )
        for row in layer_rows(record)
    )
    heads = (("kind", ""), ("shape", ""), ("parameters", ""), ("kept", ""), ("kept", "%"))
    return Grid("layers", (*heads, ("MACs", ""), ("kept", ""), ("kept", "%")), rows, dots=False)


def environments(report: Report) -> list[tuple[tuple[str, ...], list[tuple[str, str]]]]:
    """(names, facts) of each machine that numbers were taken on, and the conventions of the counts."""
    found: dict[tuple[Environment, str, str], list[str]] = {}
    for name, record in zip(report.names, report.records, strict=True):
        fit = figure_of_fit(record.sparse)
        samples = "–" if fit is None else f"{fit.split}, {fit.samples:,} samples"
        found.setdefault((record.environment, record.convention, samples), []).append(name)
    return [(tuple(names), _facts(*key)) for key, names in found.items()]


def _facts(machine: Environment, convention: str, samples: str) -> list[tuple[str, str]]:
    versions = f"secateur {machine.secateur}, torch {machine.torch}, Python {machine.python}"
    return [
        ("processor", f"{machine.cpu}, {machine.cores} cores, instruction set {machine.isa}"),
        ("threads", str(machine.threads)),
        ("versions", versions),
        ("platform", machine.platform),
        ("accuracy on", samples),
        ("MACs", convention),
    ]


def plans(report: Report) -> list[tuple[int, str, str]]:
    """(record, name, plan as indented JSON) of the records that carry a plan."""
    return [
        (index, name, json.dumps(record.plan, indent=2, ensure_ascii=False))
        for index, (name, record) in enumerate(zip(report.names, report.records, strict=True))
        if record.plan is not None
    ]
