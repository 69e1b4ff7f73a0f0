"""The plots of the page as plotly's JSON, written here and drawn by ``page.js``.

A colour is the name of a CSS variable, ``var(--c0)``, which the script resolves in the reader's
theme, so that plots and text follow the same palette, dark and light.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from secateur.records import Record, Report
from secateur.report import numbers
from secateur.report.plot_parts import (
    DENSE,
    Plot,
    bar_layout,
    colour,
    hover,
    layer_label,
    log_ticks,
    record_label,
    safe,
    short,
    title,
)
from secateur.report.series import (
    SYMBOLS,
    Bars,
    Point,
    accuracy_points,
    dense_points,
    latency_bars,
    layer_rows,
    networks,
    schedule_runs,
)

__all__ = ["accuracy_plot", "bytes_plots", "latency_plots", "layer_plots", "schedule_plot"]


def accuracy_plot(report: Report) -> Plot | None:
    """Accuracy (per cent, one standard error) against compression (log), dense models as dotted lines."""
    dense, sparse = dense_points(report), accuracy_points(report)
    if not sparse:
        return None
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": safe(point.name),
            "x": [point.compression],
            "y": [100 * point.top1],
            "error_y": {"type": "data", "array": [100 * point.standard_error], "color": tint, "thickness": 1.5},
            "marker": {"color": tint, "symbol": symbol, "size": 10},
            "hovertext": [hover(point.name, f"{point.compression:.2f} × compression", _points(point))],
            "hoverinfo": "text",
        }
        for point in (*dense, *sparse)
        for tint, symbol in [_look(point.record)]
    ]
    ends = [point.compression for point in (*dense, *sparse)]
    low, high = min(ends) / 1.15, max(ends) * 1.25
    lines = [_dotted(100 * point.top1) for point in dense]
    heights = [100 * point.top1 for point in (*dense, *sparse)]
    names = _dense_labels(dense, apart=0.05 * (max(heights) - min(heights)))
    axis = {"type": "log", "range": [math.log10(low), math.log10(high)], "title": title("compression ratio")}
    layout = {
        "height": 380,
        "xaxis": {**axis, **log_ticks(low, high, " ×")},
        "yaxis": {"title": title("accuracy"), "ticksuffix": " %", "automargin": True},
        "shapes": lines,
        "annotations": names,
    }
    return {"data": traces, "layout": layout}


def _points(point: Any) -> str:
    return f"{100 * point.top1:.2f} ± {100 * point.standard_error:.2f} %"


def _look(record: int) -> tuple[str, str]:
    return (DENSE, "circle-open") if record < 0 else (colour(record), SYMBOLS[record % len(SYMBOLS)])


def _dotted(y: float) -> Plot:
    line = {"color": DENSE, "width": 1, "dash": "dot"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line, "layer": "below"}


def _dense_labels(dense: Sequence[Point], apart: float) -> list[Plot]:
    """A name above each dotted line; lines too near to each other for that share one, from the top."""
    rows: list[list[Point]] = []
    for point in sorted(dense, key=lambda point: -point.top1):
        if rows and 100 * (rows[-1][0].top1 - point.top1) < apart:
            rows[-1].append(point)
        else:
            rows.append([point])
    # on a logarithmic axis an annotation stands at the exponent: 0 is a compression of 1
    place = {"x": 0, "xanchor": "left", "xshift": 8, "yanchor": "bottom", "showarrow": False}
    soft = {"font": {"color": "var(--soft)", "size": 12}}
    return [
        {
            **place,
            **soft,
            "y": 100 * row[0].top1,
            "text": safe(f"{', '.join(short(point.name) for point in row)}, dense"),
        }
        for row in rows
    ]


def layer_plots(record: Record, index: int) -> list[tuple[str, Plot]]:
    """Per layer, dense beneath kept: (heading, plot) of parameters and of MACs."""
    rows = layer_rows(record)
    both = (
        ("parameters", [row.parameters for row in rows], [row.kept for row in rows]),
        ("MACs", [row.macs for row in rows], [row.macs_kept for row in rows]),
    )
    plots: list[tuple[str, Plot]] = []
    for what, dense, kept in both:
        labels = [f"{100 * k / d:.1f} %" if d else numbers.MISSING for d, k in zip(dense, kept, strict=True)]
        said = [
            hover(row.name, f"{k:,} of {d:,} {what} kept", row.kind)
            for row, d, k in zip(rows, dense, kept, strict=True)
        ]
        common = {"type": "bar", "orientation": "h", "y": list(range(len(rows))), "hovertext": said}
        common["hoverinfo"] = "text"
        under = {**common, "name": "dense", "x": dense, "marker": {"color": "var(--dense-bar)"}, "width": 0.76}
        under |= {"text": labels, "textposition": "outside", "cliponaxis": False}
        over = {**common, "name": "kept", "x": kept, "marker": {"color": colour(index)}, "width": 0.76}
        reach = 1.16 * max([1, *dense, *kept])
        layout = bar_layout([layer_label(row.name) for row in rows], 22, reach, "")
        plots.append((what, {"data": [under, over], "layout": layout}))
    return plots


def schedule_plot(report: Report) -> Plot | None:
    """Sparsity against the training step, as steps; None where no record has a schedule."""
    runs = schedule_runs(report)
    if not runs:
        return None
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": safe(run.name),
            "x": [point.step for point in run.points],
            "y": [100 * point.sparsity for point in run.points],
            "line": {"shape": "hv", "color": colour(run.record), "width": 2},
            "marker": {"symbol": SYMBOLS[run.record % len(SYMBOLS)], "size": 7, "color": colour(run.record)},
            "hovertext": [
                hover(run.name, f"step {p.step:,}: {100 * p.sparsity:.1f} % removed", f"{p.kept:,} kept")
                for p in run.points
            ],
            "hoverinfo": "text",
        }
        for run in runs
    ]
    layout = {
        "height": 340,
        "xaxis": {"title": title("step"), "rangemode": "tozero"},
        "yaxis": {"title": title("sparsity"), "ticksuffix": " %", "rangemode": "tozero", "automargin": True},
    }
    return {"data": traces, "layout": layout}


def latency_plots(report: Report) -> list[tuple[str, Plot]]:
    """(heading, plot) per network and batch: medians with quartile whiskers, the spread of dense as a band."""
    several = len(networks(report)) > 1
    return [
        (
            f"{bars.network + ', ' if several else ''}batch {bars.batch}, "
            f"{bars.threads} thread{'s' if bars.threads > 1 else ''}",
            _latency_plot(bars),
        )
        for bars in latency_bars(report)
    ]


def _latency_plot(bars: Bars) -> Plot:
    names = [name for _, name, *_ in bars.rows]
    tints = [colour(index) for index, *_ in bars.rows]
    sides = (
        ("dense", -0.2, [row[2] for row in bars.rows], DENSE),
        ("sparse", 0.2, [row[3] for row in bars.rows], tints),
    )
    traces: list[Plot] = []
    for side, offset, rows, tint in sides:
        reach = {"array": [r.high_ms - r.median_ms for r in rows], "arrayminus": [r.median_ms - r.low_ms for r in rows]}
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": side,
                "width": 0.36,
                "x": [row.median_ms for row in rows],
                "y": [place + offset for place in range(len(rows))],
                "marker": {"color": tint},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    **reach,
                    "color": "var(--ink)",
                    "thickness": 1.2,
                    "width": 4,
                },
                "hovertext": [
                    hover(
                        name,
                        f"{side} {numbers.latency(row)} ms",
                        f"{ratio:.2f} ×, dense against itself {own[0]:.2f} to {own[1]:.2f} ×",
                    )
                    for row, (_, name, _, _, ratio, own) in zip(rows, bars.rows, strict=True)
                ],
                "hoverinfo": "text",
            }
        )
    reach = 1.04 * max(row.high_ms for _, _, *pair, _, _ in bars.rows for row in pair)
    layout = bar_layout(list(map(record_label, names)), 44, reach, " ms", pixels=80)
    layout["shapes"] = [_band(place, row[2].median_ms, row[5]) for place, row in enumerate(bars.rows)]
    return {"data": traces, "layout": layout}


def _band(place: int, median: float, spread: tuple[float, float]) -> Plot:
    extent = {"x0": median * spread[0], "x1": median * spread[1], "y0": place - 0.42, "y1": place + 0.42}
    return {"type": "rect", **extent, "fillcolor": "var(--band)", "line": {"width": 0}, "layer": "above"}


def bytes_plots(report: Report) -> list[tuple[str, Plot]]:
    """(heading, plot) per network: plain dense checkpoint, plain sparse checkpoint gzipped, this library's file."""
    return [(network, _bytes_plot(members)) for network, members in networks(report).items()]


def _bytes_plot(members: list[tuple[int, str, Record]]) -> Plot:
    names, records = [name for _, name, _ in members], [record for _, _, record in members]
    tints = [colour(index) for index, _, _ in members]
    sides = (
        ("dense, plain checkpoint", -0.27, [r.dense.sizes.plain_bytes for r in records], DENSE, 1.0),
        ("sparse, gzipped", 0.0, [r.sparse.sizes.gzip_bytes for r in records], tints, 0.45),
        ("sparse, this library's file", 0.27, [r.sparse.sizes.file_bytes for r in records], tints, 1.0),
    )
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": side,
            "width": 0.24,
            "x": values,
            "y": [place + offset for place in range(len(records))],
            "marker": {"color": tint, "opacity": opacity},
            "hovertext": [hover(name, side, f"{value:,} bytes") for name, value in zip(names, values, strict=True)],
            "hoverinfo": "text",
        }
        for side, offset, values, tint, opacity in sides
    ]
    reach = 1.04 * max(value for _, _, values, _, _ in sides for value in values)
    return {"data": traces, "layout": bar_layout(list(map(record_label, names)), 46, max(1, reach), "B", pixels=80)}
