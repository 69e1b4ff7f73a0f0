"""The sentence that stands first: what was won, by which record, at what price; or that nothing was."""

from __future__ import annotations

from secateur.records import Record, Report
from secateur.report import numbers
from secateur.report.columns import notes
from secateur.report.subject import Subject, as_report, figure_of_fit

__all__ = ["headline", "text_summary"]


def headline(subject: Subject) -> str:
    """Two sentences about a report: the best file and the best time, each measured.

    A record loses "no measurable accuracy" when it is at most two standard errors of the
    difference below its dense model, ``dense - sparse <= 2 sqrt(se_dense^2 + se_sparse^2)``. A time is
    a gain only where the speed-up exceeds the distance of dense from itself.

    Args:
        subject: a ``Record`` or a ``Report``.

    Returns:
        Plain text, for instance ``"snip loses no measurable accuracy (...). Fastest: ..."``.

    Raises:
        ValueError: for a report that has no records, or whose names and records do not line up.

    Example:
        >>> headline(Report("nothing", (), ()))
        Traceback (most recent call last):
        ...
        ValueError: report 'nothing' has no records: there is nothing to show
    """
    report = as_report(subject)
    if report.chosen is not None:
        report = Report(report.title, (report.chosen,), (report.records[report.names.index(report.chosen)],))
    return f"{_fit_sentence(report)} {_time_sentence(report)}"


def text_summary(subject: Subject) -> str:
    """The whole record in a few lines of plain text: fit, sparsities, bytes, MACs, latency, notes.

    Args:
        subject: a ``Record``, or a ``Report``, whose records follow each other.

    Returns:
        Lines without a newline at the end.

    Raises:
        ValueError: for a report that has no records, or whose names and records do not line up.

    Example:
        >>> text_summary(Report("nothing", (), ()))
        Traceback (most recent call last):
        ...
        ValueError: report 'nothing' has no records: there is nothing to show
    """
    report = as_report(subject)
    pairs = zip(report.names, report.records, strict=True)
    lines = [line for name, record in pairs for line in (name, *("  " + text for text in _lines(record)))]
    for names, note in notes(report):
        prefix = "" if len(report.names) == 1 else ", ".join(names) + ": "
        lines.append(f"  {prefix}{note}")
    return "\n".join(lines)


def _lines(record: Record) -> list[str]:
    dense, sparse, shares = record.dense, record.sparse, record.shares
    fit = figure_of_fit(sparse)
    of = "" if fit is None else f" ({fit.split}, {fit.samples:,} samples)"
    return [
        f"accuracy     {numbers.accuracy_change(figure_of_fit(dense), fit)} %{of}",
        f"removed      {numbers.percent(shares.units)} % of units, {numbers.percent(shares.target_weights)} % of "
        f"target weights, {numbers.percent(shares.all_parameters)} % of all parameters",
        f"file         {numbers.data_size(dense.sizes.plain_bytes)} → {numbers.data_size(sparse.sizes.file_bytes)}, "
        f"{_file_words(record)} (plain checkpoint gzipped: {numbers.data_size(sparse.sizes.gzip_bytes)})",
        f"compression  {numbers.three(record.compression)} × direct, {numbers.three(record.effective_compression)} × "
        "effective",
        f"MACs         {numbers.quantity(dense.macs)} → {numbers.quantity(sparse.macs_kept)}, "
        f"{numbers.three(record.theoretical_speedup)} × in theory ({record.convention})",
        *_time_lines(record),
    ]


def _time_lines(record: Record) -> list[str]:
    rows = zip(record.dense.latency, record.sparse.latency, record.measured_speedup, strict=True)
    spread = [f"{low:.2f} to {high:.2f}" for low, high in map(record.spread, range(len(record.sparse.latency)))]
    return [
        f"{f'batch {sparse.batch}':<12} {numbers.latency(dense)} → {numbers.latency(sparse)} ms on {sparse.threads} "
        f"thread{'s' if sparse.threads > 1 else ''}, measured {ratio:.2f} × (dense against itself {spread[index]})"
        for index, (dense, sparse, ratio) in enumerate(rows)
    ]


def _file_factor(record: Record) -> float:
    return record.dense.sizes.plain_bytes / max(1, record.sparse.sizes.file_bytes)


def _file_words(record: Record) -> str:
    factor = _file_factor(record)
    if factor >= 1.005:
        return f"{numbers.three(factor)} × smaller"
    return "not smaller"


def _fit_sentence(report: Report) -> str:
    drops = [(name, record, record.drop()) for name, record in zip(report.names, report.records, strict=True)]
    known = [(name, record, drop) for name, record, drop in drops if drop is not None]
    if not known:
        name, record, _ = max(drops, key=lambda row: _file_factor(row[1]))
        return f"No accuracy was measured. Smallest file: {name}, {_file_sentence(record)}."
    equal = [row for row in known if row[2][0] <= max(2 * row[2][1], 0.0)]
    if equal:
        name, record, _ = max(equal, key=lambda row: _file_factor(row[1]))
        verdict = "loses no measurable accuracy"
    else:
        name, record, drop = min(known, key=lambda row: row[2][0])
        verdict = f"loses {100 * drop[0]:.1f} points of accuracy" + (", the least" if len(known) > 1 else "")
    change = numbers.accuracy_change(figure_of_fit(record.dense), figure_of_fit(record.sparse))
    return f"{name} {verdict} ({change} %); its file is {_file_sentence(record)}."


def _file_sentence(record: Record) -> str:
    sizes = f"{numbers.data_size(record.dense.sizes.plain_bytes)} → {numbers.data_size(record.sparse.sizes.file_bytes)}"
    return f"{_file_words(record)} ({sizes})"


def _time_sentence(report: Report) -> str:
    runs = [
        (record.measured_speedup[index], record.spread(index), row.batch, name)
        for name, record in zip(report.names, report.records, strict=True)
        for index, row in enumerate(record.sparse.latency)
    ]
    if not runs:
        return "No latency was measured."
    gains = [run for run in runs if run[0] > run[1][1]]
    if not gains:
        if len(report.records) > 1:
            return (
                "None is faster than its dense model beyond the spread of dense against itself: for speed, stay dense."
            )
        return "It is not faster than its dense model beyond the spread of dense against itself: for speed, stay dense."
    ratio, (low, high), batch, name = max(gains)
    return f"Fastest: {name}, measured {ratio:.2f} × at batch {batch} (dense against itself: {low:.2f} to {high:.2f})."
