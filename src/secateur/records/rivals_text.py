"""The rows as a table of text: times beside each other, reasons below."""

from __future__ import annotations

from secateur.records.rivals import RivalRow, Rivals

__all__ = ["as_text"]

_HEADING = ("runtime", "computes in", "median ms", "p10 - p90", "least", "gain", "off by", "")
_LEFT = (0, 1, 7)
_STDERR_LINES = 6


def as_text(rivals: Rivals) -> str:
    """The table, the reasons and the notes.

    Args:
        rivals: the record.

    Returns:
        Lines without a line break at the end.
    """
    rows = [_HEADING, *(_cells(row, rivals) for row in rivals.rows)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADING))]
    cores = "1 thread" if rivals.threads == 1 else f"{rivals.threads} threads"
    lines = [f"{rivals.title}: batch {rivals.batch}, {cores}, {rivals.rounds} rounds"]
    for number, row in enumerate(rows):
        cells = [c.ljust(w) if p in _LEFT else c.rjust(w) for p, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths).rstrip())
    for row in rivals.rows:
        if row.why:
            lines.append(f"{row.name}: {row.status}: {row.why}" if row.status != "lost" else f"{row.name}: {row.why}")
        lines += [f"    | {line}" for line in row.stderr.splitlines()[-_STDERR_LINES:]]
    return "\n".join([*lines, *rivals.notes])


def _cells(row: RivalRow, rivals: Rivals) -> tuple[str, ...]:
    kind = row.precision if row.dense else f"{row.precision}, sparse"
    off = "" if row.off_by is None else f"{row.off_by:.1e}" if row.off_by else "0"
    if row.status != "timed" or row.median_ms is None or row.p10_ms is None or row.p90_ms is None:
        return row.name, kind, row.status, "", "", "", off, ""
    best = "best dense float32" if row.name == rivals.best else ""
    return (
        row.name,
        kind,
        _ms(row.median_ms),
        f"{_ms(row.p10_ms)} - {_ms(row.p90_ms)}",
        _ms(row.least_ms),
        "" if row.gain is None else f"{row.gain:.2f}",
        off,
        best,
    )


def _ms(value: float | None) -> str:
    """Three or four digits."""
    if value is None:
        return ""
    digits = 4 if value < 0.1 else 3 if value < 1 else 2 if value < 100 else 0
    return f"{value:.{digits}f}"
