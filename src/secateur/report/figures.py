"""The plots of the page as PNG or SVG, drawn by matplotlib's objects: no pyplot, no global figure."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from secateur.records import Report
from secateur.report.series import (
    DENSE,
    LIGHT,
    Point,
    accuracy_points,
    dense_points,
    latency_bars,
    layer_rows,
    schedule_runs,
)
from secateur.report.subject import Subject, as_report, need, timings

__all__ = ["KINDS", "figure"]

INK, SOFT, GRID = "#1b1e23", "#5b626d", "#dfe2e6"
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DPI = 160


def figure(subject: Subject, kind: str, path: str | os.PathLike[str]) -> Path:
    """Draws one plot of the report into a file.

    Args:
        subject: a ``Record`` or a ``Report``.
        kind: ``"accuracy_vs_compression"`` (points with one standard error, log axis),
            ``"layers"`` (kept of dense parameters and MACs per layer and record), ``"schedule"``
            (sparsity per step) or ``"latency"`` (medians with quartiles per batch).
        path: ends in ``.png`` or ``.svg``; its folder is made.

    Returns:
        The path that was written.

    Raises:
        ValueError: for an unknown kind or ending, or where the report has nothing of that kind.
        ImportError: where matplotlib is missing, naming the extra.

    Example:
        >>> figure(Report("nothing", (), ()), "latency", "latency.svg")
        Traceback (most recent call last):
        ...
        ValueError: report 'nothing' has no records: there is nothing to show
    """
    report, target = as_report(subject), Path(path)
    if kind not in KINDS:
        raise ValueError(f"there is no figure {kind!r}; there are {', '.join(KINDS)}")
    if target.suffix.lower() not in (".png", ".svg"):
        raise ValueError(f"{target.name!r}: a figure is written as .png or .svg, by the ending of its name")
    drawn = KINDS[kind](report)
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if target.suffix.lower() == ".svg" else {}
    drawn.savefig(target, dpi=DPI, metadata=metadata, format=target.suffix[1:].lower())
    return target


def _canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, ratios: list[int] | None = None
) -> tuple[Any, Any]:
    """A figure and its [rows, columns] of axes; ``savefig`` takes Agg or the SVG writer by the ending."""
    page = need("matplotlib.figure").Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = page.subplots(rows, columns, squeeze=False, height_ratios=ratios)
    for ax in axes.flat:
        ax.set_axisbelow(True)
        ax.grid(color=GRID, linewidth=0.8)
        ax.tick_params(colors=SOFT, labelsize=9, length=0)
        for side in ("top", "right", "left", "bottom"):
            ax.spines[side].set_visible(False)
    return page, axes


def _accuracy(report: Report) -> Any:
    dense, sparse = dense_points(report), accuracy_points(report)
    if not sparse:
        raise ValueError(f"report {report.title!r}: no record has an accuracy, so there is none to draw")
    page, axes = _canvas(7.2, 4.4)
    ax = axes[0, 0]
    handles: list[Any] = []
    for place, point in enumerate((*dense, *sparse)):
        handles.append(_marker(ax, point))
        handles[-1].lines[0].set_gid(f"accuracy:{place}")
    for point in dense:
        ax.axhline(100 * point.top1, color=DENSE, linewidth=1, linestyle=":", zorder=1)
    ax.set_xscale("log")
    ax.set_xlim(0.9, 1.2 * max(point.compression for point in (*dense, *sparse)))
    _log_ticks(ax)
    ax.set_xlabel("compression ratio", color=INK)
    ax.set_ylabel("accuracy, %", color=INK)
    _legend(page, handles, [*(f"{point.name}, dense" for point in dense), *(point.name for point in sparse)])
    return page


def _marker(ax: Any, point: Point) -> Any:
    tint = DENSE if point.record < 0 else _tint(point.record)
    marker = "o" if point.record < 0 else MARKERS[point.record % len(MARKERS)]
    error = 100 * point.standard_error
    face = "white" if point.record < 0 else tint
    return ax.errorbar(
        [point.compression], [100 * point.top1], yerr=[error], fmt=marker, color=tint, markerfacecolor=face, capsize=3
    )


def _log_ticks(ax: Any) -> None:
    low, high = ax.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [tick for d in decades for tick in (10.0**d, 2 * 10.0**d, 5 * 10.0**d) if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g} ×" for tick in ticks])
    ax.xaxis.set_minor_locator(need("matplotlib.ticker").NullLocator())


def _layers(report: Report) -> Any:
    layered = [(i, name, layer_rows(r)) for i, (name, r) in enumerate(zip(report.names, report.records, strict=True))]
    layered = [row for row in layered if row[2]]
    if not layered:
        raise ValueError(f"report {report.title!r}: no record has a table of layers, so there is none to draw")
    height = sum(0.9 + 0.24 * len(rows) for _, _, rows in layered)
    page, axes = _canvas(9.6, height, len(layered), 2, [3 + len(rows) for _, _, rows in layered])
    for (index, name, rows), pair in zip(layered, axes, strict=True):
        counts = (("parameters", "parameters", "kept"), ("MACs", "macs", "macs_kept"))
        for ax, (title, whole, part) in zip(pair, counts, strict=True):
            places = np.arange(len(rows))
            dense = ax.barh(places, [getattr(row, whole) for row in rows], height=0.76, color="#cfd4da")
            kept = ax.barh(places, [getattr(row, part) for row in rows], height=0.76, color=_tint(index))
            for place, (under, over) in enumerate(zip(dense, kept, strict=True)):
                under.set_gid(f"layers:{index}:{title}:dense:{place}")
                over.set_gid(f"layers:{index}:{title}:kept:{place}")
            ax.set_title(f"{_plain(name)}: {title}", fontsize=10, color=INK, loc="left")
            ax.set_yticks(places, [_plain(row.name) for row in rows])
            ax.invert_yaxis()
            ax.grid(visible=False, axis="y")
            ax.xaxis.set_major_formatter(need("matplotlib.ticker").EngFormatter(sep=" "))
    return page


def _schedule(report: Report) -> Any:
    runs = schedule_runs(report)
    if not runs:
        raise ValueError(f"report {report.title!r}: no record has a schedule, so there is none to draw")
    page, axes = _canvas(7.2, 4.2)
    handles: list[Any] = []
    for run in runs:
        tint, marker = _tint(run.record), MARKERS[run.record % len(MARKERS)]
        steps, shares = [p.step for p in run.points], [100 * p.sparsity for p in run.points]
        handles += axes[0, 0].step(steps, shares, where="post", color=tint, marker=marker, markersize=4)
        handles[-1].set_gid(f"schedule:{run.record}")
    axes[0, 0].set_xlabel("step", color=INK)
    axes[0, 0].set_ylabel("sparsity, %", color=INK)
    axes[0, 0].set_ylim(bottom=0)
    _legend(page, handles, [run.name for run in runs])
    return page


def _latency(report: Report) -> Any:
    sets = latency_bars(report)
    if not sets:
        raise ValueError(f"report {report.title!r}: no record has a latency, so there is none to draw")
    columns = max(1, len(timings(report)))
    lines = [sets[i : i + columns] for i in range(0, len(sets), columns)]
    ratios = [2 + max(len(bars.rows) for bars in line) for line in lines]
    page, axes = _canvas(4.8 * columns + 1.2, 0.5 * sum(ratios), len(lines), columns, ratios)
    for ax in axes.flat[len(sets) :]:
        ax.remove()
    for ax, bars in zip(axes.flat, sets, strict=False):
        for place, (index, _, dense, sparse, _, (low, high)) in enumerate(bars.rows):
            for row, shift, tint, side in ((dense, -0.2, DENSE, "dense"), (sparse, 0.2, _tint(index), "sparse")):
                whiskers = [[row.median_ms - row.low_ms], [row.high_ms - row.median_ms]]
                bar = ax.barh(
                    [place + shift], [row.median_ms], xerr=whiskers, height=0.36, color=tint, ecolor=INK, capsize=2
                )
                bar[0].set_gid(f"latency:{bars.batch}:{bars.threads}:{side}:{index}")
            extent = (dense.median_ms * (high - low), 0.84)
            ax.add_patch(
                need("matplotlib.patches").Rectangle(
                    (dense.median_ms * low, place - 0.42), *extent, color=INK, alpha=0.2
                )
            )
        ax.set_yticks(range(len(bars.rows)), [_plain(name) for _, name, *_ in bars.rows])
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set_title(
            f"{_plain(bars.network)}: batch {bars.batch}, threads {bars.threads}", fontsize=10, color=INK, loc="left"
        )
        ax.set_xlabel("ms, median and quartiles; grey: dense", color=INK)
    return page


def _legend(page: Any, handles: list[Any], names: list[str]) -> None:
    # labels go in by hand: matplotlib leaves out artists whose own label begins with an underscore
    labels = [_plain(name) for name in names]
    page.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=INK)


def _plain(name: str) -> str:
    """A name is text: never mathematics (``$``), and never hidden from the legend (a leading underscore)."""
    name = name.replace("$", r"\$")
    return "\u200a" + name if name.startswith("_") else name


def _tint(record: int) -> str:
    return LIGHT[record % len(LIGHT)]


KINDS: dict[str, Callable[[Report], Any]] = {
    "accuracy_vs_compression": _accuracy,
    "layers": _layers,
    "schedule": _schedule,
    "latency": _latency,
}
"""Kind of figure -> the function that draws it."""
