"""What zeros gain in bf16 and int8: microseconds beside dense layers in the same number format, one thread.

    python -m benchmarks.runtime_lowbits                     # five minutes
    python -m benchmarks.runtime_lowbits --layers 768x768 --samples 64 --rounds 5 --output /tmp/quick.json

90 % of the weights are removed: single ones, and blocks of two and of four neighbouring inputs. Everything alternates
in the rounds of one process; the fastest round counts. x comes and goes row-major in float32, so the conversions of the
packed layers are counted, int8's search for least and greatest too. Dense bf16 in torch gets x in bf16, dense int8 in
OpenVINO a grid that was measured beforehand. Random masks: synthetic.
Writes benchmarks/results/runtime_lowbits.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.runtime_lowbits_rivals import FORMATS, Call, dense_calls
from secateur.measure.environment import environment
from secateur.measure.latency import interleaved
from secateur.runtime import Packed, linear, pack

__all__ = ["main"]

RESULT = Path(__file__).resolve().parent / "results" / "runtime_lowbits.json"
LAYERS = ("768x768", "3072x768")
SAMPLES = (1, 64, 256)
SPARSITY = 0.9
BLOCKS = {"float32": (1, 4), "bf16": (1, 2, 4), "int8": (1, 4)}  # neighbouring inputs that are removed together
PANELS = {
    "float32": ("even", "even-wide", "rows"),
    "bf16": ("pairs-bf16", "pairs-wide-bf16", "pairs-rows-bf16"),
    "int8": ("quads-int8", "quads-wide-int8", "quads-rows-int8"),
}
SINGLES = {
    "float32": ("ell", "ell-twin", "csr"),
    "bf16": ("pairs-ell-bf16", "pairs-ell-twin-bf16", "pairs-csr-bf16"),
    "int8": ("quads-ell-int8", "quads-ell-twin-int8", "quads-csr-int8"),
}
TOLERANCE = {"float32": 1e-5, "bf16": 0.02, "int8": 0.04}
GOALS = {("bf16", 2, 64): 6.5}  # against dense bf16


def off(found: Tensor, wanted: Tensor) -> float:
    """Largest error over the size of the largest output."""
    return float((found.float() - wanted).abs().max() / wanted.abs().max())


def bare(packed: Packed, samples: int) -> Call:
    """The core without the checks of `linear`, into memory that is there already."""
    y = torch.empty(samples, packed.shape[0])
    return lambda x: packed.native.run(x.data_ptr(), len(x), y.data_ptr(), 0, 0)


def packed_calls(weight: Tensor, x: Tensor) -> dict[str, Call]:
    """Names of format, inputs and layout -> the checked function, compared with the float32 product."""
    calls: dict[str, Call] = {}
    for inputs in (1, 2, 4):
        mask = (torch.rand(len(weight), weight.shape[1] // inputs) >= SPARSITY).repeat_interleave(inputs, 1)
        wanted = F.linear(x, weight * mask)
        for form in FORMATS:
            if inputs not in BLOCKS[form]:
                continue
            for layout in (SINGLES if len(x) == 1 else PANELS)[form]:
                found = pack(weight, mask, layout)
                assert off(linear(x, found), wanted) < TOLERANCE[form], (form, layout)
                calls[f"{form} {inputs} {layout}"] = lambda x, found=found: linear(x, found)
                calls[f"{form} {inputs} {layout} bare"] = bare(found, len(x))
    return calls


def measure(layer: str, samples: int, rounds: int) -> dict[str, Any]:
    """Microseconds of one layer at one number of samples."""
    torch.manual_seed(0)
    rows, cols = map(int, layer.split("x"))
    weight, x = torch.randn(rows, cols) / cols**0.5, torch.randn(samples, cols)
    with torch.no_grad():
        dense = dense_calls(weight, x)
        for name, (form, call) in dense.items():
            assert off(call(x), F.linear(x, weight)) < TOLERANCE[form], name
        packed = packed_calls(weight, x)
        calls = {name: call for name, (_, call) in dense.items()} | packed
        times = interleaved(calls, x, rounds=rounds, threads=1, budget_s=60.0)
    us = {name: 1e3 * min(found.ms) for name, found in times.items()}
    return {
        "layer": layer,
        "samples": samples,
        "rounds": rounds,
        "dense": {form: {name: us[name] for name in dense if dense[name][0] == form} for form in FORMATS},
        "packed": {name: us[name] for name in packed},
    }


def best(times: dict[str, float]) -> tuple[str, float]:
    name = min(times, key=lambda name: times[name])
    return name, times[name]


def table_rows(run: dict[str, Any]) -> list[list[Any]]:
    found: list[list[Any]] = []
    fastest_float = best(run["dense"]["float32"])[1]
    for form in FORMATS:
        dense, dense_us = best(run["dense"][form])
        for inputs in BLOCKS[form]:
            start = f"{form} {inputs} "
            here = {name: us for name, us in run["packed"].items() if name.startswith(start)}
            name, us = best({name: us for name, us in here.items() if not name.endswith(" bare")})
            bare_us = min(us for name, us in here.items() if name.endswith(" bare"))
            found.append(
                [
                    run["layer"],
                    run["samples"],
                    form,
                    f"1x{inputs}",
                    f"{dense_us:.1f} ({dense.split()[0]})",
                    f"{us:.1f} ({name.removeprefix(start)})",
                    dense_us / us,
                    dense_us / bare_us,
                    GOALS.get((form, inputs, run["samples"])),
                    fastest_float / us,
                ]
            )
    return found


def report(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": "Linear layers at 90 % zeros in float32, bf16 and int8, one thread",
        "columns": [
            "layer",
            "samples",
            "format",
            "blocks",
            "best dense in it, us",
            "packed, us",
            "gain",
            "gain of the core alone",
            "goal",
            "gain over dense float32",
        ],
        "rows": [row for run in runs for row in table_rows(run)],
        "runs": runs,
        "environment": asdict(environment()),
        "note": "Random masks (synthetic). The fastest of interleaved rounds, which a busy machine alters least; "
        "float32 in and out, row-major, conversions counted. Dense: the best of torch, onnxruntime and OpenVINO in "
        "that format; torch gets its input in bf16, OpenVINO's int8 a grid that was measured beforehand. `gain` is of "
        "the checked Python function, `of the core alone` without its checks and allocation, as programs call it. "
        "The formats differ in accuracy: measure yours.",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", nargs="+", default=list(LAYERS))
    parser.add_argument("--samples", nargs="+", type=int, default=list(SAMPLES))
    parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds (default 30)")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for layer in options.layers:
        for samples in options.samples:
            runs.append(measure(layer, samples, options.rounds))
            for row in table_rows(runs[-1]):
                print(*(f"{cell:.2f}" if isinstance(cell, float) else cell for cell in row), sep="  ", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report(runs), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
