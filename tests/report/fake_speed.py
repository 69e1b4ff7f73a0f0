"""Records of speed without any measuring. ``python fake_speed.py FILE`` shows 120 layers, roofs and a race."""

from __future__ import annotations

import random
import sys
from typing import Any

from secateur.records import Bandwidth, Explanation, LayerLine, Report, RivalRow, Rivals, Roofs
from tests.report.fake import ENVIRONMENT

__all__ = ["fake_explanation", "fake_line", "fake_race", "fake_roofs", "many_layers"]

KIB = 1 << 10
# name, precision, dense, milliseconds: the last three have none
RUNTIMES = [
    ("eager", "float32", True, 120.5),
    ("eager again", "float32", True, 121.0),
    ("onnxruntime", "float32", True, 76.1),
    ("openvino", "float32", True, 70.0),
    ("openvino-bf16", "bfloat16", True, 38.8),
    ("packed", "float32", False, 25.0),
    ("compile", "float32", True, None),
]


def fake_roofs() -> Roofs:
    """100 GFLOP/s, and 25 GB/s from memory."""
    bands = (
        Bandwidth("second cache", 1024 * KIB, 512 * KIB, 110.0),
        Bandwidth("last cache", 32768 * KIB, 8192 * KIB, 80.0),
        Bandwidth("memory", None, 98304 * KIB, 25.0),
    )
    return Roofs("avx512", 100.0, 200.0, bands)


def fake_line(name: str = "conv", **changes: Any) -> LayerLine:
    """100,000 operations on 20,000 bytes in 2 us: 50 GFLOP/s at an intensity of 5."""
    fields: dict[str, Any] = {
        "name": name,
        "sparsity": 0.9,
        "pattern": "unstructured",
        "layout": "even",
        "dense_us": 10.0,
        "us": 2.0,
        "program": 0,
        "flops": 100_000,
        "dense_flops": 1_000_000,
        "weight_bytes": 12_000,
        "input_bytes": 5_000,
        "output_bytes": 3_000,
    }
    return LayerLine(**{**fields, **changes})


def fake_explanation(*lines: LayerLine, **changes: Any) -> Explanation:
    """These layers, or one; 1 us between them, 1 us around them."""
    lines = lines or (fake_line(),)
    fields: dict[str, Any] = {
        "layers": lines,
        "other_us": 1.0,
        "us": sum(line.us for line in lines) + 2.0,
        "dense_us": sum(line.dense_us for line in lines) + 4.0,
        "samples": 1,
        "roofs": fake_roofs(),
        "title": "net.safetensors",
        "environment": ENVIRONMENT,
    }
    return Explanation(**{**fields, **changes})


def fake_race(**changes: Any) -> Rivals:
    """Seven runtimes; one of them has no time."""
    rows = tuple(_row(*runtime) for runtime in RUNTIMES)
    fields: dict[str, Any] = {
        "title": "net.safetensors",
        "batch": 1,
        "threads": 1,
        "rounds": 20,
        "turn_s": 0.1,
        "rows": rows,
        "best": "openvino",
        "spread": (0.98, 1.02),
        "notes": ("gain: time of openvino / time, median of the rounds.",),
        "environment": ENVIRONMENT,
    }
    return Rivals(**{**fields, **changes})


def _row(name: str, precision: str, dense: bool, ms: float | None) -> RivalRow:
    twin = "eager" if name == "eager again" else ""
    if ms is None:
        return RivalRow(name, precision, dense, "1.0", "not installed", "needs a C++ compiler")
    times = {"median_ms": ms, "p10_ms": 0.95 * ms, "p90_ms": 1.1 * ms, "least_ms": 0.9 * ms}
    gain = 70.0 / ms
    return RivalRow(
        name, precision, dense, "1.0", "timed", off_by=1e-6, gain=gain, gain_range=(0.97 * gain, 1.02 * gain),
        twin_of=twin, **times,
    )  # fmt: skip


def many_layers(count: int) -> list[LayerLine]:
    """Layers of any size, some of them slow, some with torch, as real ones scatter."""
    rng = random.Random(0)
    lines: list[LayerLine] = []
    for i in range(count):
        flops, intensity = int(10 ** rng.uniform(5, 7.5)), 10 ** rng.uniform(-0.5, 1.4)
        moved, gflops = int(flops / intensity), min(100, 60 * intensity) * rng.uniform(0.25, 1.0)
        us, torch = flops / gflops / 1e3, i % 17 == 5
        lines.append(
            fake_line(
                f"features.stage{i // 12}.block{i // 4 % 3}.conv{i % 4}",
                sparsity=rng.uniform(0.8, 0.97),
                layout="torch" if torch else rng.choice(["copied4", "direct", "even", "csr"]),
                dense_us=us if torch else us * rng.uniform(0.9, 8),
                us=us,
                program=None if torch else 0,
                flops=flops,
                dense_flops=10 * flops,
                weight_bytes=moved // 2,
                input_bytes=moved // 4,
                output_bytes=moved // 4,
            )
        )
    return lines


if __name__ == "__main__":
    from secateur.report import to_html

    print(to_html(Report("Speed", (), ()), sys.argv[1], speed=[fake_explanation(*many_layers(120)), fake_race()]))
