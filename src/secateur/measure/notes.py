"""What the numbers of a record mean, in sentences: a gain where there is one, and why not where there is none."""

from __future__ import annotations

from secateur.records import Record
from secateur.text import data_size

__all__ = ["sentences"]

_SAME_KERNELS = "because a masked dense tensor runs the same dense kernels"


def sentences(record: Record) -> tuple[str, ...]:
    """Sentences on time, file, fit and paths, computed from the record's own figures.

    A time is a gain only where the ratio of medians leaves the spread of dense against itself.

    Args:
        record: as measured; its ``notes`` are not read.

    Returns:
        Plain sentences without a final stop.
    """
    return (*_time(record), *_file(record), *_fit(record), *_paths(record), *_unfinished(record))


def _unfinished(record: Record) -> list[str]:
    planned = (record.plan or {}).get("sparsity")
    reached = record.schedule[-1].sparsity if record.schedule else planned
    if planned is None or reached is None or reached >= planned - 0.01:
        return []
    return [
        f"the plan was not finished, training ended before its last update: sparsity {reached:.2f} of {planned:.2f}"
    ]


def _time(record: Record) -> list[str]:
    """One sentence per verdict, with the figures of every batch size it holds for."""
    rows = zip(record.sparse.latency, record.measured_speedup, record.dense_spread, strict=True)
    figures: dict[str, list[str]] = {}
    for latency, ratio, (low, high) in rows:
        if ratio > high:
            verdict = "faster"
        elif ratio < low:
            verdict = "slower, for speed stay dense"
        elif record.sparse.macs == record.dense.macs and record.sparse.parameters == record.dense.parameters:
            verdict = f"no gain here in time, {_SAME_KERNELS}"
        else:
            verdict = "no gain here in time, although fewer multiply-adds are left"
        at = f"batch {latency.batch} on {latency.threads} thread{'s' if latency.threads > 1 else ''}"
        text = f"{ratio:.2f} x at {at} (dense against itself {low:.2f} to {high:.2f})"
        figures.setdefault(verdict, []).append(text)
    return [f"{verdict}: {', '.join(texts)}" for verdict, texts in figures.items()]


def _file(record: Record) -> list[str]:
    plain, ours, gzipped = (
        record.dense.sizes.plain_bytes,
        record.sparse.sizes.file_bytes,
        record.sparse.sizes.gzip_bytes,
    )
    factor = plain / max(ours, 1)
    change = f"({data_size(plain)} as a plain checkpoint, {data_size(ours)} as saved here)"
    if factor < 1.005:
        found = [f"no gain here in bytes: the file is {1 / factor:.2f} x the plain checkpoint {change}"]
    else:
        found = [f"the file is {factor:.1f} x smaller {change}"]
    if gzipped <= ours:
        found.append(f"gzip of a plain checkpoint of the sparse model is no larger: {data_size(gzipped)}")
    single = plain >= 3.5 * record.dense.parameters  # four bytes a weight: float32
    if single and factor < 4:
        rivals = "bfloat16 (about 2 x) or int8 (about 4 x)" if factor < 2 else "int8 (about 4 x)"
        found.append(f"the dense model stored in {rivals} would be smaller than this file")
    return found


def _fit(record: Record) -> list[str]:
    found: list[str] = []
    for sparse in record.sparse.accuracy:
        measured = record.drop(sparse.split)
        if measured is None:
            continue
        drop, error = measured
        size = f"{abs(100 * drop):.1f} points {'lower' if drop > 0 else 'higher'}"
        spread = f"(standard error of the difference {100 * error:.1f}, {sparse.samples} samples)"
        if abs(drop) <= 2 * error or drop == 0:
            found.append(f"no measurable change of accuracy on {sparse.split}: {size} {spread}")
        else:
            found.append(f"accuracy on {sparse.split} is {size} {spread}")
    return found


def _paths(record: Record) -> list[str]:
    if record.effective_compression is None or record.sparse.effective_kept is None:
        return []
    lost = record.sparse.kept - record.sparse.effective_kept
    if lost <= 0:
        return []
    share = 100 * lost / record.sparse.kept
    return [
        f"{share:.2g} % of the kept parameters lie on no path from input to output: compression is "
        f"{record.compression:.2f} x direct, {record.effective_compression:.2f} x effective"
    ]
