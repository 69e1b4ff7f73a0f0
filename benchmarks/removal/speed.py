"""What half the channels buy: measured latency against the multiply-adds, eager and compiled, widths rounded or not.

    python -m benchmarks.removal.speed                        # about 40 minutes; resumes where it stopped
    python -m benchmarks.removal.speed --networks MobileNetV1 --modes eager --rounds 5

One thread, 224x224 images, batch 1 and 16. Dense, dense again and all smaller models alternate in the rounds of one
process; figures are medians. Random weights: synthetic, but shapes alone make the time of dense kernels.
Writes benchmarks/results/removal_speed.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.removal.limited import run_module, say

__all__ = ["VARIANTS", "main"]

RESULT = Path(__file__).resolve().parents[1] / "results" / "removal_speed.json"
NETWORKS = ("ResNet-18", "MobileNetV1", "MobileNetV2")
MODES = ("eager", "compiled")
BATCHES = (1, 16)
SPARSITY = 0.5
LIMIT_S = 1800.0
VARIANTS: dict[str, dict[str, Any]] = {
    "same share of each layer": {"allocation": "uniform"},
    "ranked over all layers": {"allocation": "global"},
    "ranked, multiples of 8": {"allocation": "global", "round_to": 8},
    "ranked, multiples of 16": {"allocation": "global", "round_to": 16},
    "ranked, multiples measured": {"allocation": "global", "round_to": "measured"},
}


def child(network: str, mode: str, rounds: int, variants: list[str]) -> None:
    """In the process: shrink in every way, count, and measure all side by side."""
    import torch

    import secateur as sc
    from benchmarks.removal.shapes import build, image
    from secateur.measure import count

    torch.set_num_threads(1)
    dense, x = build(network), image(1)
    models = {"dense": dense}
    for name in variants:
        models[name] = sc.shrink(copy.deepcopy(dense), example_inputs=x, sparsity=SPARSITY, **VARIANTS[name])
    counts = {name: count(model, x) for name, model in models.items()}
    widths = {n: {w.name: [w.before, w.after] for w in sc.shrinkage(models[n]).groups} for n in variants}
    kinds = {name: by_kind(model, image(1)) for name, model in models.items()} if mode == "eager" else {}
    runs = [one_batch(models, mode, batch, rounds) for batch in BATCHES]
    say(
        {
            "network": network,
            "mode": mode,
            "macs": {name: found.macs for name, found in counts.items()},
            "parameters": {name: found.parameters for name, found in counts.items()},
            "widths": widths,
            "ms_by_kind": kinds,
            "batches": runs,
        }
    )


def one_batch(models: dict[str, Any], mode: str, batch: int, rounds: int) -> dict[str, Any]:
    """Every round's milliseconds of all models."""
    import torch

    from benchmarks.removal.shapes import image
    from secateur.measure.latency import interleaved

    calls = dict(models)
    if mode == "compiled":
        torch.compiler.reset()
        calls = {name: torch.compile(model, dynamic=False) for name, model in models.items()}
    calls["dense again"] = calls["dense"]
    times = interleaved(calls, image(batch), rounds=rounds, threads=1, budget_s=120.0)
    return {"batch": batch, "ms": {name: list(found.ms) for name, found in times.items()}}


def by_kind(model: Any, x: Any, rounds: int = 7) -> dict[str, float]:
    """Milliseconds of all layers of a kind in one eager call: where the time is that no multiply-add explains."""
    import torch
    from torch import nn

    spent: dict[str, list[float]] = defaultdict(list)
    total: dict[str, float] = defaultdict(float)
    started: list[float] = []

    def kind(module: nn.Module) -> str:
        depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
        return f"{type(module).__name__}{', depthwise' if depthwise else ''}"

    def after(module: nn.Module, *_: Any) -> None:
        total[kind(module)] += 1e3 * (time.perf_counter() - started.pop())

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [m.register_forward_pre_hook(lambda *_: started.append(time.perf_counter())) for m in leaves]
    hooks += [m.register_forward_hook(after) for m in leaves]
    with torch.no_grad():
        for _ in range(rounds):
            total.clear()
            model(x)
            for name, ms in total.items():
                spent[name].append(ms)
    for hook in hooks:
        hook.remove()
    return {name: round(median(found), 3) for name, found in spent.items()}


def rows_of(record: dict[str, Any]) -> list[list[Any]]:
    """One row per batch and smaller model."""
    from secateur.measure.latency import quantile

    rows: list[list[Any]] = []
    for run in record["batches"]:
        dense = run["ms"]["dense"]
        for name in [n for n in run["ms"] if n != "dense"]:
            ratios = [a / b for a, b in zip(dense, run["ms"][name], strict=True)]
            speedup = median(dense) / median(run["ms"][name])
            fewer = record["macs"]["dense"] / record["macs"].get(name, record["macs"]["dense"])
            rows.append(
                [
                    record["network"],
                    record["mode"],
                    run["batch"],
                    name,
                    round(median(run["ms"][name]), 2),
                    round(fewer, 2),
                    round(speedup, 2),
                    f"{quantile(ratios, 0.1):.2f} to {quantile(ratios, 0.9):.2f}",
                    round(speedup / fewer, 2),
                ]
            )
    return rows


def explained(records: list[dict[str, Any]], variant: str = "ranked, multiples of 16") -> str:
    """Where the time of one image goes, by kind of layer: what has few multiply-adds shrinks with the width alone."""
    lines = []
    for record in records:
        kinds = record["ms_by_kind"]
        if variant in kinds:
            parts = [
                f"{kind} {before:.2f} to {kinds[variant][kind]:.2f} ({before / kinds[variant][kind]:.1f}x)"
                for kind, before in sorted(kinds["dense"].items(), key=lambda row: -row[1])
                if before >= 0.2
            ]
            lines.append(f"{record['network']}: {', '.join(parts)}")
    return "; ".join(lines)


def result(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The table, and all that it was made of."""
    from benchmarks.removal.libraries import versions
    from secateur.measure.environment import environment

    return {
        "title": "Half the channels, measured: one thread, 224x224 images",
        "columns": [
            "network",
            "mode",
            "batch",
            "which half",
            "ms",
            "MACs, times fewer",
            "measured, times faster",
            "10 to 90 % of rounds",
            "measured / MACs",
        ],
        "rows": [row for record in records for row in rows_of(record)],
        "records": records,
        "versions": versions(),
        "environment": {**asdict(environment()), "threads": 1},
        "note": "Medians of interleaved rounds in one process per network and mode; 'dense again' is the same model a "
        "second time: a difference within its spread is none. Random weights (synthetic): the time of dense kernels "
        "depends on shapes alone. Goal: measured / MACs of at least 0.85 with chosen widths. Milliseconds by kind of "
        f"layer, eager, one image, dense to multiples of 16: {explained(records)}. Half the channels are a quarter of "
        "a convolution's multiply-adds, and half of what batch norms, activations and depthwise convolutions do.",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), help="default: %(default)s")
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES, help="default: both")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="default: all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.child:
        child(options.networks[0], options.modes[0], options.rounds, options.variants)
        return
    records: list[dict[str, Any]] = []
    if options.output.exists() and not options.fresh:
        records = json.loads(options.output.read_text(encoding="utf-8"))["records"]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for network in options.networks:
        for mode in options.modes:
            if any((record["network"], record["mode"]) == (network, mode) for record in records):
                continue
            choice = ["--networks", network, "--modes", mode, "--rounds", str(options.rounds)]
            choice += ["--variants", *options.variants]
            found = run_module("benchmarks.removal.speed", "--child", *choice, limit_s=LIMIT_S)
            if found.status != "done" or found.record is None:
                parser.exit(1, f"{network}, {mode}: {found.status} after {found.seconds:.0f} s\n{found.error}\n")
            records.append(found.record)
            for line in rows_of(found.record):
                print(line, flush=True)
            options.output.write_text(json.dumps(result(records), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
