"""A realistic report without any measuring: two networks, six sparse models. ``python fake.py FILE`` shows it."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from secateur.records import (
    Accuracy,
    Agreement,
    Energy,
    Environment,
    Latency,
    LayerRow,
    Record,
    Report,
    SchedulePoint,
    Shares,
    Side,
    Sizes,
    TrainingCost,
)

__all__ = ["fake_masks", "fake_record", "fake_report"]

LENET = [("conv1", (6, 1, 5, 5), 784), ("conv2", (16, 6, 5, 5), 100), ("fc1", (120, 400), 1), ("fc2", (84, 120), 1)]
LENET += [("fc3", (10, 84), 1)]
RESNET = [("stem", (32, 1, 3, 3), 64)]
RESNET += [
    (f"stage{stage}.{block}.conv{conv}", (width, width if block or conv > 1 else max(32, width // 2), 3, 3), area)
    for stage, width, area in ((1, 32, 64), (2, 64, 16), (3, 128, 4))
    for block in (0, 1)
    for conv in (1, 2)
] + [("head", (10, 128), 1)]

ENVIRONMENT = Environment("AMD EPYC 9654", 2, 1, "avx512", "3.11.2", "2.13.0+cpu", "0.1.0", "Linux-6.1-x86_64")
CONVENTION = "multiply-adds of convolutions and linear layers, no bias"
# name, network, sparsity, accuracy after, file share of dense, latency factors, method facts
ROWS: list[tuple[str, str, float, float, float, tuple[float, float], bool]] = [
    ("lenet magnitude one-shot 90 %", "lenet", 0.90, 0.9417, 0.137, (1.01, 0.99), False),
    ("lenet magnitude gradual 90 %", "lenet", 0.90, 0.9750, 0.137, (0.99, 1.00), True),
    ("lenet iterative 95 %", "lenet", 0.95, 0.9722, 0.081, (1.00, 1.01), True),
    ("lenet snip 90 %", "lenet", 0.90, 0.9611, 0.138, (1.02, 0.98), False),
    ("resnet gradual 95 %", "resnet", 0.95, 0.9833, 0.074, (1.01, 1.00), True),
    ("resnet channels 50 %", "resnet", 0.50, 0.9806, 0.501, (0.78, 0.54), False),
]
NO_GAIN = (
    "no gain in time here, because masked weights run in the dense kernels: shrink or pack the model, or stay dense"
)


def _accuracy(split: str, samples: int, top1: float) -> Accuracy:
    error = math.sqrt(top1 * (1 - top1) / samples)
    return Accuracy(split, samples, top1, error, 2.7 * (1 - top1), 0.6 * (1 - top1))


def _layers(network: str, sparsity: float) -> tuple[LayerRow, ...]:
    shapes = LENET if network == "lenet" else RESNET
    rows: list[LayerRow] = []
    for index, (name, shape, area) in enumerate(shapes):
        weights = math.prod(shape)
        own = sparsity * (0.6 if index in (0, len(shapes) - 1) else 1.0)
        kept = weights - math.floor(own * weights + 0.5)
        kind = "conv" if len(shape) == 4 else "linear"
        rows.append(LayerRow(name, kind, shape, weights + shape[0], kept + shape[0], weights * area, kept * area))
    return tuple(rows)


def _side(name: str, network: str, sparsity: float, top1: float, share: float, factor: tuple[float, float]) -> Side:
    layers = _layers(network, sparsity)
    parameters, kept = sum(row.parameters for row in layers), sum(row.kept for row in layers)
    plain = 4 * parameters + 900
    base = (0.2134, 6.482) if network == "lenet" else (1.2041, 48.21)
    latency = tuple(
        Latency(batch, 1, ms * f, ms * f * (0.972 if share == 1 else 0.958), ms * f * 1.041, 30)
        for batch, ms, f in zip((1, 256), base, factor, strict=True)
    )
    sizes = Sizes(plain, int(plain * (0.93 if share == 1 else 1.6 * share)), int(plain * share))
    accuracy = (_accuracy("train", 1437, min(1.0, top1 + 0.015)), _accuracy("test", 360, top1))
    energy = (Energy(1, 0.0123 * factor[0], 400, "package-0 (RAPL)"),)
    macs, macs_kept = sum(row.macs for row in layers), sum(row.macs_kept for row in layers)
    effective = int(kept * 0.97) if network == "lenet" else None
    return Side(name, parameters, kept, macs, macs_kept, effective, sizes, accuracy, latency, energy, layers)


def _schedule(sparsity: float, kept: int, total: int) -> tuple[SchedulePoint, ...]:
    ends = [sparsity * (1 - (1 - i / 15) ** 3) for i in range(16)]
    return tuple(SchedulePoint(100 + 40 * i, s, int(total - s / sparsity * (total - kept))) for i, s in enumerate(ends))


def fake_record(row: int = 1, **changes: Any) -> Record:
    """One of the six rows as a record; ``changes`` replace its fields."""
    name, network, sparsity, top1, share, factor, gradual = ROWS[row]
    dense = _side(network, network, 0.0, 0.9778 if network == "lenet" else 0.9861, 1.0, (1.0, 1.0))
    sparse = _side(name, network, sparsity, top1, share, factor)
    fields: dict[str, Any] = {
        "dense": dense,
        "sparse": sparse,
        "shares": Shares(sparsity, sparsity, 1 - sparse.kept / sparse.parameters),
        "compression": sparse.parameters / sparse.kept,
        "effective_compression": sparse.parameters / sparse.effective_kept if sparse.effective_kept else None,
        "theoretical_speedup": dense.macs / sparse.macs_kept,
        "measured_speedup": tuple(1 / f for f in factor),
        "dense_self_ratio": (1.021 - 0.004 * row, 0.987 + 0.003 * row),
        "agreement": Agreement(360, 0.961, 0.0167, 0.0483),
        "training": TrainingCost(12.4 + row, 12.1 + row, 310.0 if gradual else None),
        "schedule": _schedule(sparsity, sparse.kept, sparse.parameters) if gradual else (),
        "plan": {"sparsity": sparsity, "criterion": "snip" if "snip" in name else "magnitude", "unit": "weight"},
        "convention": CONVENTION,
        "notes": () if factor[1] < 0.9 else (NO_GAIN,),
        "environment": ENVIRONMENT,
    }
    return Record(**{**fields, **changes})


def fake_report(rows: int = 6) -> Report:
    """The first ``rows`` records under one title."""
    records = tuple(fake_record(row) for row in range(rows))
    return Report("Digits: six ways to a sparse network", tuple(row[0] for row in ROWS[:rows]), records)


def fake_masks() -> dict[str, dict[str, np.ndarray]]:
    """Masks for two of the records: unstructured, and whole filters."""
    rng = np.random.default_rng(0)
    lenet = {f"{name}.weight": rng.random(shape) < 0.1 for name, shape, _ in LENET}
    resnet = {
        f"{name}.weight": np.broadcast_to(rng.random((shape[0],) + (1,) * (len(shape) - 1)) < 0.5, shape)
        for name, shape, _ in RESNET
    }
    return {ROWS[1][0]: lenet, ROWS[5][0]: resnet}


if __name__ == "__main__":
    from secateur.report import to_html

    print(to_html(fake_report(), sys.argv[1], masks=fake_masks()))
