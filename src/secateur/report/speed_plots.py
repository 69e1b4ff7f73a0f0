"""The plots of the latency page as plotly's JSON: runtimes, layers, the roofline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from secateur.records import Explanation, LayerLine, RivalRow, Rivals, Roofs
from secateur.report import numbers
from secateur.report.plot_parts import DENSE, Plot, bar_layout, colour, hover, layer_label, log_ticks, title
from secateur.report.speed import HALF

__all__ = ["DASHES", "race_plot", "roofline_plot", "speed_layers_plot", "whole_plot"]

DASHES = {"second cache": "dot", "last cache": "dash", "memory": "solid"}
"""How the roof of each level is drawn."""
_SMALLEST, _LARGEST = 7, 22  # pixels of a point
_RIM = {"color": "var(--ink)", "width": 1}


def race_plot(race: Rivals) -> Plot | None:
    """A bar per runtime, the fastest first, with the 10 and 90 % quantiles; None where none was timed."""
    rows = sorted((row for row in race.rows if row.status == "timed" and not row.twin_of), key=lambda row: _ms(row)[0])
    if not rows:
        return None
    labels = [row.name + ("" if row.precision == "float32" else f"<br>{row.precision}") for row in rows]
    times = [_ms(row) for row in rows]
    return _bars(
        labels,
        [time[0] for time in times],
        [_tint(row.dense, row.precision) for row in rows],
        [hover(row.name, row.precision, *_facts(row)) for row in rows],
        [(low, high) for _, low, high in times],
    )


def whole_plot(found: Explanation) -> Plot | None:
    """Dense in torch against packed, where no race was run; None where nothing was packed."""
    if not found.layers:
        return None
    times = [found.us / 1e3, found.dense_us / 1e3]
    said = [hover(name, numbers.duration(ms)) for name, ms in zip(("packed", "dense in torch"), times, strict=True)]
    tints = [_tint(False, "float32"), _tint(True, "float32")]
    return _bars(["packed", "dense in torch"], times, tints, said, None)


def _ms(row: RivalRow) -> tuple[float, float, float]:
    assert row.median_ms is not None
    assert row.p10_ms is not None
    assert row.p90_ms is not None
    return row.median_ms, row.p10_ms, row.p90_ms


def _facts(row: RivalRow) -> tuple[str, ...]:
    median, low, high = map(numbers.duration, _ms(row))
    gain = "" if row.gain is None else f"{row.gain:.2f} × the best dense float32"
    return f"{median}, 10 to 90 %: {low} to {high}", *([gain] if gain else [])


def _tint(dense: bool, precision: str) -> Plot:
    shape = "" if precision == "float32" else "/"  # colour is not all that tells them apart
    tint = DENSE if dense else colour(0)
    return {"color": tint, "pattern": {"shape": shape, "fillmode": "overlay", "fgcolor": "var(--paper)", "size": 6}}


def _bars(
    labels: list[str],
    times: list[float],
    markers: list[Plot],
    said: list[str],
    reach: Sequence[tuple[float, float]] | None,
) -> Plot:
    largest = max(times if reach is None else [high for _, high in reach])
    scale, unit = (1.0, " ms") if largest >= 0.1 else (1e3, " µs")
    times, reach = [scale * ms for ms in times], reach and [(scale * low, scale * high) for low, high in reach]
    traces: list[Plot] = []
    for place, (time, marker, text) in enumerate(zip(times, markers, said, strict=True)):
        trace: Plot = {
            "type": "bar",
            "orientation": "h",
            "name": labels[place],
            "x": [time],
            "y": [place],
            "width": 0.62,
        }
        trace |= {"marker": marker, "hovertext": [text], "hoverinfo": "text"}
        if reach is not None:
            low, high = reach[place]
            sides = {"type": "data", "symmetric": False, "array": [high - time], "arrayminus": [time - low]}
            trace["error_x"] = {**sides, "color": "var(--ink)", "thickness": 1.2, "width": 4}
        traces.append(trace)
    ends = times if reach is None else [high for _, high in reach]
    layout = bar_layout(labels, 36, 1.18 * max(ends), unit)
    # beside the bar, where a whisker would cross a label inside
    layout["annotations"] = [
        {"x": end, "y": place, "text": numbers.three(time), "showarrow": False, "xanchor": "left", "xshift": 6}
        for place, (time, end) in enumerate(zip(times, ends, strict=True))
    ]
    return {"data": traces, "layout": layout}


def speed_layers_plot(found: Explanation) -> Plot:
    """Per layer, in the order in which they run: microseconds in torch (broad, grey), packed (narrow)."""
    lines = found.layers
    said = [
        hover(
            line.name,
            f"dense in torch {numbers.three(line.dense_us)} µs, packed {numbers.three(line.us)} µs: {line.gain:.2f} ×",
            f"{100 * line.sparsity:.1f} % zeros, {line.pattern}; {line.layout}",
        )
        for line in lines
    ]
    common: Plot = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(lines))),
        "hovertext": said,
        "hoverinfo": "text",
    }
    under = {**common, "name": "dense in torch", "x": [line.dense_us for line in lines], "width": 0.8}
    under["marker"] = {"color": "var(--dense-bar)"}
    over = {**common, "name": "packed", "x": [line.us for line in lines], "width": 0.42, "marker": {"color": colour(0)}}
    ends = [max(line.us, line.dense_us) for line in lines]
    layout = bar_layout([layer_label(line.name) for line in lines], 24, 1.16 * max(ends), " µs")
    layout["xaxis"]["side"] = "top"  # a long list scrolls
    layout["margin"] = {"t": 32, "b": 8, "l": 8, "r": 16}
    layout["annotations"] = [
        {"x": end, "y": place, "text": f"{line.gain:.1f} ×", "showarrow": False, "xanchor": "left", "xshift": 4}
        for place, (line, end) in enumerate(zip(lines, ends, strict=True))
    ]
    return {"data": [under, over], "layout": layout}


def roofline_plot(found: Explanation) -> Plot | None:
    """A point per layer under the roofs of the machine, both axes logarithmic; None without roofs."""
    roofs = found.roofs
    lines = [line for line in found.layers if line.flops > 0]
    if roofs is None or not lines:
        return None
    ridges = [roofs.gflops / band.gbps for band in roofs.bandwidths]
    low = min(*(line.intensity for line in lines), *ridges) / 2
    high = 2 * max(*(line.intensity for line in lines), *ridges)
    bf16 = any(line.in_bf16 for line in lines)
    top = roofs.gflops_bf16 if bf16 else roofs.gflops
    bottom = min(*(line.gflops for line in lines), top / 10) / 2
    traces = _roof_lines(roofs, found.working_bytes, (low, high), bf16)
    longest = max(line.us for line in lines)
    traces += [
        _points(name, symbol, tint, [line for line in lines if _kind(found, line) == name], found, longest)
        for name, symbol, tint in _KINDS
    ]
    axes = {
        axis: {"type": "log", "range": [math.log10(a), math.log10(b)], "title": title(text), **log_ticks(a, b)}
        for axis, a, b, text in (
            ("xaxis", low, high, "operations on nonzeros per byte that must move"),
            ("yaxis", bottom, 2 * top, "10⁹ operations per second"),
        )
    }
    axes["yaxis"]["automargin"] = True
    return {"data": [trace for trace in traces if trace["x"]], "layout": {"height": 460, **axes}}


_KINDS = (
    ("packed", "circle", colour(0)),
    ("packed, under half of its roof", "diamond", colour(1)),
    ("torch runs it", "circle-open", DENSE),
)


def _kind(found: Explanation, line: LayerLine) -> str:
    roof = found.roof_of(line)
    assert roof is not None
    if line.program is None:
        return "torch runs it"
    return "packed, under half of its roof" if line.gflops < HALF * roof else "packed"


def _roof_lines(roofs: Roofs, working: int, ends: tuple[float, float], bf16: bool) -> list[Plot]:
    here, peak = roofs.level_of(working), roofs.gflops_bf16 if bf16 else roofs.gflops
    low, high = ends
    drawn: list[Plot] = []
    for band in roofs.bandwidths:
        ridge = peak / band.gbps
        line = {"color": "var(--ink)", "width": 2.5 if band is here else 1.2, "dash": DASHES.get(band.level, "dashdot")}
        drawn.append(
            _line([low, ridge], [low * band.gbps, peak], line, f"{band.level}: {numbers.three(band.gbps)} GB/s")
        )
    nearest = max(band.gbps for band in roofs.bandwidths)
    flat = {"color": "var(--ink)", "width": 2.5}
    for name, top in (("float32", roofs.gflops), *([("bf16 pairs", roofs.gflops_bf16)] if bf16 else [])):
        said = f"multiply-adds, {name}: {numbers.three(top)} GFLOP/s"
        drawn.append(_line([top / nearest, high], [top, top], flat, said))
    return drawn


def _line(x: list[float], y: list[float], line: Plot, said: str) -> Plot:
    # more places than two, so that the pointer finds the line
    share = [step / 24 for step in range(25)]
    between = [[math.exp(math.log(a) + s * (math.log(b) - math.log(a))) for s in share] for a, b in (x, y)]
    said = hover("roof", said)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": between[0],
        "y": between[1],
        "line": line,
        "name": said,
        "hovertext": [said] * len(share),
        "hoverinfo": "text",
    }


def _points(
    name: str, symbol: str, tint: str, lines: list[LayerLine], found: Explanation, longest: float
) -> dict[str, Any]:
    sizes = [max(_SMALLEST, _LARGEST * math.sqrt(line.us / longest)) for line in lines]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [line.intensity for line in lines],
        "y": [line.gflops for line in lines],
        "marker": {"symbol": symbol, "color": tint, "size": sizes, "opacity": 0.8, "line": _RIM},
        "hovertext": [_said(line, found) for line in lines],
        "hoverinfo": "text",
    }


def _said(line: LayerLine, found: Explanation) -> str:
    roof = found.roof_of(line)
    assert roof is not None
    return hover(
        line.name,
        f"{numbers.three(line.us)} µs by {line.layout}, {100 * line.sparsity:.1f} % zeros",
        f"{numbers.three(line.gflops)} of {numbers.three(roof)} GFLOP/s ({100 * line.gflops / roof:.0f} %)",
        f"{numbers.three(line.intensity)} operations per byte, {numbers.data_size(line.moved_bytes)} move",
    )
