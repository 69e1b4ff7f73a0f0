"""LeNet-300-100 on Fashion-MNIST: one-shot and gradual magnitude, SNIP and random pruning, five seeds.

    python benchmarks/lenet_fashion.py [--seeds 5] [--data FILE_OR_FOLDER]

Every finished run is kept in ``results/lenet_fashion.runs.jsonl``, so that a run that was stopped goes on where it
was. The table is the mean and the standard deviation over the seeds of the accuracy on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from secateur.benchmark.data import Images, fashion_mnist
from secateur.benchmark.models import lenet_300_100
from secateur.benchmark.protocol import Recipe, Setting, fit, run_method
from secateur.measure import TrainingMeter, environment

RESULTS = Path(__file__).resolve().parent / "results"
SHARED = Path(os.environ.get("SECATEUR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
METHODS = (
    "one-shot magnitude",
    "one-shot magnitude, tuned",
    "gradual magnitude",
    "SNIP before training",
    "random before training",
)
EPOCHS, TUNING = 8, 4


def accuracy(model: nn.Module, data: Images) -> float:
    """Per cent of the test images."""
    return 100 * sc.evaluate(model, (data.x_test, data.y_test)).top1


def file_bytes(model: nn.Module) -> int:
    """Bytes that ``sc.save`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        return sc.save(model, Path(folder) / "model.safetensors")


def runs_of_seed(data: Images, seed: int, done: dict[tuple[int, str, float], dict[str, Any]], log: Path) -> None:
    """All runs of one seed that are not done yet, each appended to the log as it ends."""

    def keep(method: str, sparsity: float, model: nn.Module, core_s: float) -> None:
        row = {"seed": seed, "method": method, "sparsity": sparsity, "accuracy": accuracy(model, data)}
        row |= {"bytes": file_bytes(model), "core_s": core_s}
        done[seed, method, sparsity] = row
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"seed {seed}  {method:28} {sparsity:5}  {row['accuracy']:.2f} %  {core_s:.0f} core-s", flush=True)

    todo = [(m, s) for m in METHODS for s in SPARSITIES if (seed, m, s) not in done]
    if not todo and (seed, "dense", 0.0) in done:
        return
    recipe = Recipe(epochs=EPOCHS, tuning_epochs=TUNING, batch_size=128, lr=2e-3, seed=seed)
    torch.manual_seed(seed)
    fresh = lenet_300_100()
    dense = copy.deepcopy(fresh)
    with TrainingMeter() as meter:
        fit(dense, data, recipe, epochs=EPOCHS, lr=recipe.lr)
    if (seed, "dense", 0.0) not in done:
        keep("dense", 0.0, dense, meter.cost.core_s)
    for method, sparsity in todo:
        outcome = run_method(method, Setting(fresh, dense, data, recipe, sparsity))
        keep(method, sparsity, outcome.model, outcome.cost.core_s)


def table(done: dict[tuple[int, str, float], dict[str, Any]], seeds: int) -> dict[str, Any]:
    """The result file: one row per method, one column per sparsity."""

    def cell(method: str, sparsity: float) -> str:
        values = [done[seed, method, sparsity]["accuracy"] for seed in range(seeds)]
        spread = statistics.stdev(values) if seeds > 1 else 0.0
        return f"{statistics.mean(values):.2f} ± {spread:.2f}"

    rows: list[list[Any]] = [["dense", *[cell("dense", 0.0)] * len(SPARSITIES)]]
    rows += [[method, *(cell(method, sparsity) for sparsity in SPARSITIES)] for method in METHODS]
    dense = done[0, "dense", 0.0]["bytes"]
    sizes = [done[0, "gradual magnitude", sparsity]["bytes"] / 1e3 for sparsity in SPARSITIES]
    rows.append([f"file, kB (dense {dense / 1e3:.0f})", *(f"{size:.0f}" for size in sizes)])
    machine = environment().to_record()
    return {
        "title": "LeNet-300-100 on Fashion-MNIST: test accuracy in per cent by share of weights removed",
        "columns": ["method", *(f"{100 * s:g} %" for s in SPARSITIES)],
        "rows": rows,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": (
            f"Mean ± standard deviation over {seeds} seeds, 10,000 test images (standard error of one run about .33). "
            f"Dense, gradual, SNIP and random train {EPOCHS} epochs from the same first weights; 'tuned' adds {TUNING} "
            "epochs after pruning, plain one-shot none. Global allocation, at least one weight kept per layer."
        ),
        "runs": list(done.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "fashion_mnist" / "fashion_mnist.npz")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = fashion_mnist(arguments.data)
    log = RESULTS / "lenet_fashion.runs.jsonl"
    RESULTS.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    done = {(row["seed"], row["method"], row["sparsity"]): row for row in rows}
    for seed in range(arguments.seeds):
        runs_of_seed(data, seed, done, log)
    result = json.dumps(table(done, arguments.seeds), indent=1)
    (RESULTS / "lenet_fashion.json").write_text(result + "\n", encoding="utf-8")
    log.unlink()


if __name__ == "__main__":
    main()
