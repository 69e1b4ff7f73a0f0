"""The tables of the latency page: runtimes, and layers with all their figures."""

from __future__ import annotations

from secateur.records import Explanation, LayerLine, RivalRow, Rivals
from secateur.report import numbers
from secateur.report.grids import Grid

__all__ = ["race_grid", "speed_layers_grid"]


def race_grid(race: Rivals) -> Grid:
    """Every runtime, those without a time too, and why."""
    heads = (("computes in", ""), ("median", "ms"), ("10 – 90 %", "ms"), ("gain", "×"), ("off by", ""), ("", ""))
    rows = tuple((0, row.name, _cells(row, race)) for row in race.rows)
    return Grid("speed-runtimes", heads, rows, dots=False)


def _cells(row: RivalRow, race: Rivals) -> tuple[str, ...]:
    kind = row.precision if row.dense else f"{row.precision}, sparse"
    off = numbers.MISSING if row.off_by is None else f"{row.off_by:.0e}" if row.off_by else "0"
    if row.status != "timed":
        return kind, numbers.MISSING, numbers.MISSING, numbers.MISSING, off, row.status
    between = f"{numbers.three(row.p10_ms)} – {numbers.three(row.p90_ms)}"
    gain = numbers.MISSING if row.gain is None else f"{row.gain:.2f}"
    return kind, numbers.three(row.median_ms), between, gain, off, "best dense float32" if row.name == race.best else ""


def speed_layers_grid(found: Explanation) -> Grid:
    """A row per layer in the order in which they run, then what lies between them and the whole."""
    heads: tuple[tuple[str, str], ...] = (("zeros", "%"), ("pattern", ""), ("kernel", ""), ("dense", "µs"))
    heads += (("packed", "µs"), ("gain", "×"), ("on nonzeros", "GFLOP/s"), ("intensity", "FLOP/byte"))
    heads += () if found.roofs is None else (("of its roof", "%"),)
    blank = ("",) * (3 if found.roofs else 2)
    rest = found.us - found.programs_us
    extra = [("conversions, sums", ("", "", "", "", numbers.three(found.other_us), "", *blank))]
    if found.threads == 1:  # on several threads the whole is less than the sum of its parts
        extra.append(("torch and Python", ("", "", "", "", numbers.three(rest), "", *blank)))
    whole = (numbers.three(found.dense_us), numbers.three(found.us), f"{found.gain:.2f}")
    extra.append(("whole model", ("", "", "", *whole, *blank)))
    rows = [(line.name, _line_cells(line, found)) for line in found.layers] + extra
    return Grid("speed-layers", heads, tuple((0, name, cells) for name, cells in rows), dots=False)


def _line_cells(line: LayerLine, found: Explanation) -> tuple[str, ...]:
    roof = found.roof_of(line)
    share = () if roof is None else (f"{100 * line.gflops / roof:.0f}" if roof else numbers.MISSING,)
    return (
        numbers.percent(line.sparsity),
        line.pattern,
        line.layout,
        numbers.three(line.dense_us),
        numbers.three(line.us),
        f"{line.gain:.2f}",
        numbers.three(line.gflops),
        numbers.three(line.intensity),
        *share,
    )
