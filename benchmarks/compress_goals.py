"""``sc.compress`` to three goals on two data sets, five seeds: an eighth of the file, twice the speed, both.

    python benchmarks/compress_goals.py [--seeds 5] [--work FOLDER]      # resumes where it stopped

Digits: the residual network 32-64-128, one image per call. Fashion-MNIST: LeNet-300-100, 64 images per call. At most
one point of accuracy may go; the last sixth of the training images is searched on, test images are told.
Dense networks are trained first; compress then knows nothing but the goal. One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.benchmark.data import digits, fashion_mnist
from secateur.benchmark.models import Residual, lenet_300_100
from secateur.measure import environment

RESULTS = Path(__file__).resolve().parent / "results"
SHARED = Path(os.environ.get("SECATEUR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
GOALS = {
    "file / 8": sc.Goal(max_drop=1.0, bytes=1 / 8),
    "speed x 2": sc.Goal(max_drop=1.0, speedup=2.0),
    "both": sc.Goal(max_drop=1.0, bytes=1 / 8, speedup=2.0),
}
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A data set with its network, as the user of ``compress`` has them."""

    name: str
    train: Pair
    valid: Pair
    test: Pair
    batch: int
    epochs: int
    recovery: sc.Training

    def fresh(self, seed: int) -> nn.Module:
        """The network before training."""
        torch.manual_seed(seed)
        return Residual() if self.name == "digits" else lenet_300_100()

    def dense(self, seed: int, file: Path) -> nn.Module:
        """The trained network, from its file where it is there."""
        model = self.fresh(seed)
        if file.exists():
            sc.load(file, into=model)
        else:
            training = sc.Training(self.epochs, lr=2e-3, lr_schedule="one_cycle", loss=F.cross_entropy, seed=seed)
            sc.fit(model, self.train, training, progress=False)
            sc.save(model, file)
        return model.eval()


def cases(fashion: Path) -> list[Case]:
    """Both, with the last sixth of the training images held out to search on."""
    found = []
    for name, data, batch, epochs, recovery in (
        ("digits", digits(), 1, 15, 6),
        ("Fashion-MNIST", fashion_mnist(fashion), 64, 8, 6),
    ):
        cut = len(data.y_train) * 5 // 6
        train, valid = (data.x_train[:cut], data.y_train[:cut]), (data.x_train[cut:], data.y_train[cut:])
        tune = sc.Training(recovery, lr=1e-3, lr_schedule="linear", loss=F.cross_entropy)
        found.append(Case(name, train, valid, (data.x_test, data.y_test), batch, epochs, tune))
    return found


def run(case: Case, goal: str, seed: int, work: Path) -> dict[str, Any]:
    """One search; its folder remembers what was tried."""
    dense = case.dense(seed, work / f"{case.name}-{seed}.safetensors")
    example = case.train[0][: case.batch]
    result = sc.compress(
        dense,
        case.train,
        case.valid,
        case.test,
        goal=GOALS[goal],
        recovery=case.recovery,
        example_inputs=example,
        batch=case.batch,
        rival_epochs=case.epochs + case.recovery.epochs,
        folder=work / f"{case.name}-{goal.replace(' / ', '-').replace(' ', '-')}-{seed}",
        seed=seed,
        progress=False,
    )
    print(result, flush=True)
    record = result.record
    chosen = record.point(record.chosen)
    rivals = {r.name: r.trial.to_record() for r in record.rivals if r.trial is not None}
    row = {"data": case.name, "goal": goal, "seed": seed, "met": record.met, "missed": list(record.missed)}
    return {
        **row,
        "dense": record.dense.to_record(),
        "chosen": chosen.to_record(),
        "rivals": rivals,
        "points": len(record.points),
        "seconds": sum(point.seconds for point in record.points),
    }


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A line per data set and goal: means over the seeds."""
    lines = []
    for data, goal in dict.fromkeys((row["data"], row["goal"]) for row in rows):
        runs = [row for row in rows if (row["data"], row["goal"]) == (data, goal)]
        lines.append(
            [
                data,
                goal,
                f"{sum(run['met'] for run in runs)} of {len(runs)}",
                told(runs, lambda run: run["dense"]["test"]["value"]),
                told(runs, lambda run: -run["chosen"]["test"]["drop"], sign=True),
                told(runs, lambda run: run["dense"]["bytes"] / run["chosen"]["bytes"]),
                told(runs, lambda run: run["chosen"]["speedup"]),
                told(runs, lambda run: -run["rivals"]["narrower"]["test"]["drop"], sign=True),
                told(runs, lambda run: run["rivals"]["narrower"]["speedup"]),
                told(runs, lambda run: run["points"]),
                told(runs, lambda run: run["seconds"]),
            ]
        )
    machine = environment().to_record()
    return {
        "title": "compress to three goals at one point of accuracy: what came of it, on test images",
        "columns": [
            "data",
            "goal",
            "met on valid",
            "dense, %",
            "change, points",
            "file, times smaller",
            "times faster",
            "narrower rival: change",
            "narrower rival: times faster",
            "points trained",
            "training, s",
        ],
        "rows": lines,
        "runs": rows,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": (
            "Mean ± standard deviation over seeds. Digits: residual network 32-64-128 (308 k parameters), one image a "
            "call. Fashion-MNIST: LeNet-300-100 (266 k), 64 images per call. Goals hold on the images searched on; "
            "figures are of the test images. The narrower rival has as many bytes (for speed: multiply-adds) as the "
            "chosen one and is trained from scratch for as many epochs as the dense network and its recovery together."
        ),
    }


def told(runs: list[dict[str, Any]], of: Any, *, sign: bool = False) -> str:
    """Mean and standard deviation of those runs that have the figure."""
    values = []
    for one in runs:
        try:
            values.append(float(of(one)))
        except KeyError:  # a rival that was left out
            continue
    if not values:
        return "left out"
    text = f"{statistics.mean(values):{'+' if sign else ''}.2f}"
    return text + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "fashion_mnist" / "fashion_mnist.npz")
    parser.add_argument("--work", type=Path, default=RESULTS / "compress_goals.work")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    log = options.work / "runs.jsonl"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    for seed in range(options.seeds):
        for case in cases(options.data):
            for goal in GOALS:
                if any((row["data"], row["goal"], row["seed"]) == (case.name, goal, seed) for row in rows):
                    continue
                rows.append(run(case, goal, seed, options.work))
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        text = json.dumps(table(rows), indent=1, ensure_ascii=False)
        (RESULTS / "compress_goals.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
