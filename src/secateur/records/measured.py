"""What was measured, as frozen records: measured by ``measure``, drawn by ``report``, stored by anyone.

Units are in the names: ``_ms`` milliseconds,
``_bytes`` bytes, ``_j`` joules, ``_s`` seconds; shares and accuracies are fractions of 1.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.records.base import Jsonable

__all__ = [
    "Accuracy",
    "Agreement",
    "Energy",
    "Environment",
    "Latency",
    "LayerRow",
    "Record",
    "Report",
    "SchedulePoint",
    "Shares",
    "Side",
    "Sizes",
    "TrainingCost",
]


@dataclass(frozen=True)
class Shares(Jsonable):
    """The three sparsities, each the fraction removed: of units, of target weights, of all parameters."""

    units: float
    target_weights: float
    all_parameters: float


@dataclass(frozen=True)
class LayerRow(Jsonable):
    """One layer. ``macs`` are multiply-adds for one sample; ``kept`` counts by masks where there are masks."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    kept: int
    macs: int
    macs_kept: int


@dataclass(frozen=True)
class Accuracy(Jsonable):
    """Fit on one data set. ``standard_error`` is sqrt(p (1 - p) / n); ``nll`` in nats; ``ece`` with ``bins`` bins."""

    split: str
    samples: int
    top1: float
    standard_error: float
    nll: float
    ece: float
    bins: int = 15


@dataclass(frozen=True)
class Agreement(Jsonable):
    """Against the dense model: same argmax; dense right and sparse wrong; KL(dense || sparse) in nats."""

    samples: int
    agreement: float
    negative_flips: float
    kl: float


@dataclass(frozen=True)
class Latency(Jsonable):
    """Milliseconds per call: median and quartiles over ``rounds`` interleaved rounds."""

    batch: int
    threads: int
    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int


@dataclass(frozen=True)
class Sizes(Jsonable):
    """Bytes on disk: plain safetensors checkpoint, the same gzipped, and this library's file."""

    plain_bytes: int
    gzip_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class Energy(Jsonable):
    """Joules per call at ``batch`` read from the machine's counters over ``calls`` calls."""

    batch: int
    joules: float
    calls: int
    source: str


@dataclass(frozen=True)
class TrainingCost(Jsonable):
    """What a training run took; ``joules`` is None where no counter can be read."""

    wall_s: float
    core_s: float
    joules: float | None = None


@dataclass(frozen=True)
class Side(Jsonable):
    """One measured model.

    ``parameters`` counts all of them, ``kept`` those not removed (masks decide; without
    masks every parameter is kept). ``macs`` / ``macs_kept`` per sample, convolutions and linear layers
    only, no bias. ``effective_kept`` counts kept parameters on some path from input to output
    (None where the network is not a plain chain).
    """

    name: str
    parameters: int
    kept: int
    macs: int
    macs_kept: int
    effective_kept: int | None
    sizes: Sizes
    accuracy: tuple[Accuracy, ...]
    latency: tuple[Latency, ...]
    energy: tuple[Energy, ...]
    layers: tuple[LayerRow, ...]


@dataclass(frozen=True)
class SchedulePoint(Jsonable):
    """One mask update as it happened."""

    step: int
    sparsity: float
    kept: int


@dataclass(frozen=True)
class Environment(Jsonable):
    """Where the numbers were taken."""

    cpu: str
    cores: int
    threads: int
    isa: str
    python: str
    torch: str
    secateur: str
    platform: str


@dataclass(frozen=True)
class Record(Jsonable):
    """Dense against sparse: everything ``sc.measure`` found, and why there is no gain where there is none.

    ``compression`` = parameters / kept of all parameters; ``theoretical_speedup`` = macs / macs_kept;
    ``measured_speedup`` per latency row, dense median / sparse median, beside
    ``dense_self_ratio``, dense against itself in the same rounds: the ratio of its two medians.
    ``dense_spread`` is the range (10 to 90 %, made symmetric) of that ratio round by round: a measured
    speedup inside it is no gain.
    """

    dense: Side
    sparse: Side
    shares: Shares
    compression: float
    effective_compression: float | None
    theoretical_speedup: float
    measured_speedup: tuple[float, ...]
    dense_self_ratio: tuple[float, ...]
    agreement: Agreement | None
    training: TrainingCost | None
    schedule: tuple[SchedulePoint, ...]
    plan: dict[str, Any] | None
    convention: str
    notes: tuple[str, ...]
    environment: Environment
    dense_spread: tuple[tuple[float, float], ...] = ()

    def spread(self, index: int) -> tuple[float, float]:
        """How far dense is from itself in latency row ``index``: a speedup inside this range is no gain."""
        if self.dense_spread:
            return self.dense_spread[index]
        itself = self.dense_self_ratio[index]
        return min(itself, 1 / itself), max(itself, 1 / itself)

    def drop(self, split: str | None = None) -> tuple[float, float] | None:
        """(accuracy lost, its standard error) on one split; None where it was not measured on both sides.

        Without ``split``: on ``test`` where there is one, else on the last that was taken.

        Where both models saw the same samples the error is paired: it comes from the samples on which just one
        of the two is right, ``sqrt(positive flips + negative flips - drop^2) / sqrt(n)``.
        """
        if len(self.dense.accuracy) != len(self.sparse.accuracy) or not self.dense.accuracy:
            return None
        pairs = {d.split: (d, s) for d, s in zip(self.dense.accuracy, self.sparse.accuracy, strict=True)}
        split = split or ("test" if "test" in pairs else list(pairs)[-1])
        if split not in pairs:
            return None
        dense, sparse = pairs[split]
        lost = dense.top1 - sparse.top1
        if split != "test" or self.agreement is None or self.agreement.samples != dense.samples:
            return lost, math.hypot(dense.standard_error, sparse.standard_error)
        one_right = 2 * self.agreement.negative_flips - lost
        return lost, math.sqrt(max(one_right - lost * lost, 0.0) / dense.samples)

    def __str__(self) -> str:
        """The figures in a few lines, and what they mean."""
        from secateur.report.headline import text_summary

        return text_summary(self)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write this record as one self-contained page; see ``sc.to_html``.

        Args:
            path: of the page.

        Returns:
            The path written.
        """
        # Records look upwards here and in __str__ alone: one can show itself, and nothing is loaded before it does.
        from secateur.report.html import to_html

        return to_html(self, path)


@dataclass(frozen=True)
class Report(Jsonable):
    """Several records under one title: what a table or a page shows.

    ``chosen`` names the record that its headline speaks of: one that was chosen before these figures were taken. None:
    the best of all by these figures.
    """

    title: str
    names: tuple[str, ...]
    records: tuple[Record, ...]
    chosen: str | None = None

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write all records as one self-contained page; see ``sc.to_html``.

        Args:
            path: of the page.

        Returns:
            The path written.
        """
        from secateur.report.html import to_html

        return to_html(self, path)
