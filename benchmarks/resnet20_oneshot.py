"""A published ResNet-20 for CIFAR-10, one-shot global magnitude at 30 to 80 %, no training at all.

    python benchmarks/resnet20_oneshot.py

Accuracy on the first 1,000 test images in their exact pixels, and the bytes of the file. Magnitude has no
randomness, so there are no seeds; global random pruning (five seeds) stands beside as the control.
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

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import secateur as sc
from secateur.benchmark.models import ResNet20
from secateur.measure import environment

RESULTS = Path(__file__).resolve().parent / "results"
SHARED = Path(os.environ.get("SECATEUR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SEEDS = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def exact_test_images(shared: Path) -> tuple[Tensor, Tensor]:
    """The first 1,000 test images of CIFAR-10, normalised as the weights expect, and their labels."""
    with np.load(shared / "data" / "cifar10" / "cifar10_exact_5000.npz", allow_pickle=False) as archive:
        pixels, labels = archive["x_test"], archive["y_test"]
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (x - mean) / std, torch.from_numpy(labels.astype(np.int64)).flatten()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    shared = parser.parse_args().shared
    torch.set_num_threads(1)
    data = exact_test_images(shared)
    dense = ResNet20().eval()
    # The file's shortcuts have no parameters and its batch counters are not stored.
    dense.load_state_dict(load_file(shared / "data" / "resnet20_cifar10" / "resnet20.safetensors"), strict=False)
    rows: list[list[Any]] = [row("dense", dense, dense, data, 0.0)]
    for sparsity in SPARSITIES:
        pruned = copy.deepcopy(dense)
        sc.prune(pruned, sparsity)
        rows.append(row("magnitude, global", dense, pruned, data, sparsity))
    for sparsity in SPARSITIES:
        accuracies = []
        for seed in range(SEEDS):
            pruned, _ = sc.prune(dense, sparsity, criterion="random", seed=seed, inplace=False)
            accuracies.append(100 * sc.evaluate(pruned, data).top1)
        rows.append(
            ["random, global (5 seeds)", 100 * sparsity, round(statistics.mean(accuracies), 2), None, None, None]
        )
    machine = environment().to_record()
    result = {
        "title": "ResNet-20 on CIFAR-10, pruned once without training: accuracy on 1,000 exact test images",
        "columns": [
            "method",
            "weights removed, %",
            "accuracy, %",
            "same answer as dense, %",
            "file, bytes",
            "of dense, %",
        ],
        "rows": rows,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": (
            "The standard error of an accuracy of 90 % on 1,000 images is .9 points. "
            "The dense file is plain safetensors."
        ),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "resnet20_oneshot.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for line in rows:
        print(line)


def row(
    name: str, dense: torch.nn.Module, model: torch.nn.Module, data: tuple[Tensor, Tensor], sparsity: float
) -> list[Any]:
    """Accuracy, agreement with dense, and file size of one model."""
    with tempfile.TemporaryDirectory() as folder:
        plain = sc.save(dense, Path(folder) / "dense.safetensors")
        size = sc.save(model, Path(folder) / "model.safetensors")
    accuracy = 100 * sc.evaluate(model, data).top1
    same = 100 * sc.agreement(dense, model, data).agreement if model is not dense else 100.0
    return [name, 100 * sparsity, round(accuracy, 2), round(same, 2), size, round(100 * size / plain, 1)]


if __name__ == "__main__":
    main()
