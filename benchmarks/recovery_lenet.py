"""LeNet-300-100 on Fashion-MNIST: fine-tuning and rewinding in rounds, winning tickets and their controls, five seeds.

    python benchmarks/recovery_lenet.py [--seeds 5] [--data FILE_OR_FOLDER] [--work FOLDER]

Every finished round is kept in the work folder, and the one under way as a checkpoint, so that a run that was stopped
goes on where it was. The table is the mean and the standard deviation over the seeds of the accuracy on the 10,000
test images, which nothing was chosen by: every figure is of the last weights of a fixed number of epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.benchmark.data import Images, fashion_mnist
from secateur.benchmark.models import lenet_300_100
from secateur.measure import environment
from secateur.train.loop.feed import steps_per_epoch
from secateur.train.loop.fit import fit
from secateur.train.loop.snapshot import Snapshot
from secateur.train.loop.training import Training
from secateur.train.recovery import Round, prune_rounds, recover
from secateur.train.recovery.tickets import random_tickets, reinitialised

RESULTS = Path(__file__).resolve().parent / "results"
SHARED = Path(os.environ.get("SECATEUR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
LEVELS = (0.8, 0.9, 0.95, 0.98)
PATH = (0.2, 0.36, 0.488, 0.59, 0.672, 0.738, 0.8, 0.84, 0.872, 0.9, 0.92, 0.936, 0.95, 0.96, 0.97, 0.98)
TICKETS = {7: 0.789, 15: 0.964}
"""Round -> share that is gone, by 20 % of the hidden layers and 10 % of the output layer per round."""
RECOVERED = {"finetune": "fine-tuning", "rewind_lr": "learning-rate rewinding", "rewind_weights": "weight rewinding"}
TRAINING = Training(
    epochs=8, optimizer="sgd", lr=0.05, lr_schedule="steps(0.5, 0.75)", batch_size=128, loss=F.cross_entropy
)
BACK, EARLY = 5, 100
"""Epochs of a recovery, and the early step that tickets are rewound to."""


@dataclass
class Seed:
    """One seed: its data, its dense network, and the rows that are done."""

    number: int
    data: Images
    training: Training
    work: Path
    log: Path
    done: dict[tuple[str, int], dict[str, Any]]

    def train_data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels."""
        return self.data.x_train, self.data.y_train

    @property
    def late(self) -> int:
        """The step that recoveries are rewound to."""
        return (self.training.epochs - BACK) * steps_per_epoch(self.train_data(), self.training)

    def fresh(self) -> nn.Module:
        """The network before training."""
        torch.manual_seed(self.number)
        return lenet_300_100()

    def keep(self, method: str, index: int, model: nn.Module, share: float, core_s: float) -> None:
        """Write the accuracy of a model down."""
        if (method, index) in self.done:  # a run that was killed between two files
            return
        accuracy = 100 * sc.evaluate(model, (self.data.x_test, self.data.y_test)).top1
        row = {"seed": self.number, "method": method, "round": index, "sparsity": round(share, 4)}
        row |= {"accuracy": round(accuracy, 2), "core_s": round(core_s, 2)}
        self.done[method, index] = row
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"seed {self.number}  {method:30} {share:7.2%}  {accuracy:.2f} %  {core_s:.1f} core-s", flush=True)

    def dense(self) -> tuple[nn.Module, dict[int, Snapshot]]:
        """The trained network and its snapshots: from files where they are there."""
        steps = (0, EARLY, self.late)
        files = {step: self.work / f"dense-{step}.snapshot" for step in steps}
        model, trained = self.fresh(), self.work / "dense.safetensors"
        if trained.exists():
            sc.load(trained, into=model)
            return model, {step: Snapshot.load(file) for step, file in files.items()}
        fitted = fit(model, self.train_data(), self.training, keep=steps, progress=False)
        for step, file in files.items():
            fitted.snapshots[step].save(file)
        self.keep("dense", 0, model, 0.0, fitted.cost.core_s)
        sc.save(model, trained)
        return model, fitted.snapshots


def recoveries(seed: Seed) -> None:
    """One path of rounds for each way to recover; it passes all levels."""
    for how, method in RECOVERED.items():
        if all((method, index) in seed.done for index in range(1, len(PATH) + 1)):
            continue
        model, snapshots = seed.dense()

        def told(row: Round, model: nn.Module, method: str = method) -> None:
            seed.keep(method, row.index, model, row.sparsity, row.core_s)

        prune_rounds(
            model,
            seed.train_data(),
            seed.training,
            sparsities=PATH,
            how=how,
            epochs=BACK,
            snapshot=snapshots[seed.late] if how == "rewind_weights" else None,
            folder=seed.work / how,
            on_round=told,
            progress=False,
        )


def lottery(seed: Seed) -> None:
    """Winning tickets rewound to step 0 and to an early step, and their controls."""
    for step in (0, EARLY):
        method, folder = f"ticket, rewound to step {step}", seed.work / f"ticket-{step}"
        names = [method, f"{method}: fresh weights", f"{method}: random masks"]
        if all((name, index) in seed.done for name in names for index in TICKETS):
            continue
        model, snapshots = seed.dense()

        def told(row: Round, model: nn.Module, method: str = method) -> None:
            seed.keep(method, row.index, model, row.sparsity, row.core_s)

        prune_rounds(
            model,
            seed.train_data(),
            seed.training,
            rounds=max(TICKETS),
            rate=0.2,
            rates={"5": 0.1},
            snapshot=snapshots[step],
            folder=folder,
            on_round=told,
            progress=False,
        )
        for index, share in TICKETS.items():
            ticket = sc.load(folder / f"round-{index:02d}.safetensors", into=seed.fresh())
            fresh = reinitialised(ticket, seed=1000 + seed.number)
            cost = fit(fresh, seed.train_data(), seed.training, progress=False).cost
            seed.keep(names[1], index, fresh, share, cost.core_s)
            other = next(random_tickets(ticket, seed=seed.number, snapshot=snapshots[step]))
            cost = recover(
                other, seed.train_data(), seed.training, "rewind_weights", snapshot=snapshots[step], progress=False
            ).cost
            seed.keep(names[2], index, other, share, cost.core_s)


def table(rows: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """The result file: a row per method, a column per share of weights removed."""

    def cell(method: str, index: int) -> str | None:
        values = [row["accuracy"] for row in rows if row["method"] == method and row["round"] == index]
        if not values:
            return None
        assert len(values) == seeds, (method, index, len(values))
        spread = statistics.stdev(values) if seeds > 1 else 0.0
        return f"{statistics.mean(values):.2f} ± {spread:.2f}"

    at = [PATH.index(level) + 1 for level in LEVELS]
    columns = ["method", *(f"{100 * share:g} %" for share in (*LEVELS, *TICKETS.values()))]
    lines = [["dense", *[cell("dense", 0)] * (len(LEVELS) + len(TICKETS))]]
    lines += [[m, *(cell(m, index) for index in at), *[None] * len(TICKETS)] for m in RECOVERED.values()]
    for step in (0, EARLY):
        for name in ("", ": fresh weights", ": random masks"):
            method = f"ticket, rewound to step {step}{name}"
            lines.append([method, *[None] * len(LEVELS), *(cell(method, index) for index in TICKETS)])
    machine = environment().to_record()
    note = (
        f"Mean ± standard deviation over {seeds} seeds, 10,000 test images (standard error of one run about .31); last "
        f"weights, nothing chosen by them. {TRAINING.epochs} epochs of SGD, learning rate {TRAINING.lr:g}, a tenth at "
        f"half and at three quarters, batch {TRAINING.batch_size}. Upper rows: global magnitude in {len(PATH)} rounds "
        f"that pass all levels, {BACK} epochs of recovery each, seed for seed from the same dense network. "
        "Fine-tuning and learning-rate rewinding carry their weights from round to round, so they were trained for "
        "the epochs of all rounds so far; rewound weights and tickets for one training. "
        "Tickets: 20 % of what is left of the hidden layers and 10 % of the output layer per round, "
        f"{max(TICKETS)} rounds of full training (step {EARLY}: {EARLY / TRAINING.epochs / 469:.1%} of it); "
        "columns of tickets are rounds 7 and 15. "
        "Controls: the ticket's masks on fresh weights; random masks of the same layer counts on the ticket's weights."
    )
    return {
        "title": "LeNet-300-100 on Fashion-MNIST: test accuracy after recovery, per cent by share of weights removed",
        "columns": columns,
        "rows": lines,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": note,
        "runs": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "fashion_mnist" / "fashion_mnist.npz")
    parser.add_argument("--work", type=Path, default=RESULTS.parents[1] / "runs" / "recovery_lenet")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--tiny", action="store_true", help="2,000 images, to see whether it runs; no result is written"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = fashion_mnist(arguments.data)
    data = data.first(2000, 500) if arguments.tiny else data
    log = arguments.work / "runs.jsonl"
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    finished: list[dict[str, Any]] = []
    for number in range(arguments.seeds):
        work = arguments.work / f"seed-{number}"
        work.mkdir(exist_ok=True)
        done = {(row["method"], row["round"]): row for row in rows if row["seed"] == number}
        seed = Seed(number, data, replace(TRAINING, seed=number), work, log, done)
        recoveries(seed)
        lottery(seed)
        finished += seed.done.values()
    result = table(finished, arguments.seeds)
    if arguments.tiny:
        print(json.dumps(result["rows"], indent=1, ensure_ascii=False))
        return
    text = json.dumps(result, indent=1)
    (arguments.results / "recovery_lenet.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
