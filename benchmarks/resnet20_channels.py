"""A published ResNet-20 for CIFAR-10 with 20, 30 and 50 % fewer multiply-adds, channels removed for good.

    python benchmarks/resnet20_channels.py            # the last row trains one epoch: some minutes

By magnitude, Taylor (4 batches of 128 exact training images) and random (5 seeds): accuracy on the first 1,000 test
images in their exact pixels without any training, and after batch-norm statistics were taken again on the 4,000 exact
training images. One budget is then trained for one epoch on the first 10,000 images of the recompressed training set.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from resnet20_oneshot import MEAN, RESULTS, SHARED, STD, exact_test_images
from safetensors.torch import load_file
from torch import Tensor, nn

import secateur as sc
from secateur.benchmark.models import ResNet20
from secateur.measure import environment
from secateur.measure.macs import count_uses

BUDGETS = (0.8, 0.7, 0.5)
SEEDS = 5
TRAINED = (0.7, "l2")
Data = tuple[Tensor, Tensor]


def normalised(pixels: np.ndarray, labels: np.ndarray) -> Data:
    """NHWC bytes as the weights expect them."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (x - mean) / std, torch.from_numpy(labels.astype(np.int64)).flatten()


def exact_training_images(shared: Path) -> Data:
    """The first 4,000 training images in exact pixels."""
    with np.load(shared / "data" / "cifar10" / "cifar10_exact_5000.npz", allow_pickle=False) as archive:
        return normalised(archive["x_train"], archive["y_train"])


def recompressed(shared: Path, count: int) -> Data:
    """The first training images of the recompressed set."""
    with np.load(shared / "data" / "cifar10" / "cifar10_jpeg_60000.npz", allow_pickle=False) as archive:
        stream, offsets, labels = archive["jpeg_train"], archive["offsets_train"], archive["y_train"]
    images = [
        np.asarray(Image.open(io.BytesIO(stream[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB"))
        for i in range(count)
    ]
    return normalised(np.stack(images), labels[:count])


def batches(data: Data, size: int = 128) -> list[Data]:
    """Batches in order."""
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


def shrunk(dense: nn.Module, macs: float, criterion: str, train: Data, seed: int = 0) -> nn.Module:
    """A smaller network within a budget of multiply-adds."""
    needs = {"data": batches(train)[:4], "loss": F.cross_entropy, "batches": 4} if criterion == "taylor" else {}
    return sc.shrink(dense, example_inputs=train[0][:2], macs=macs, criterion=criterion, seed=seed, **needs)


def train_one_epoch(model: nn.Module, data: Data, seed: int = 0) -> None:
    """SGD with momentum, learning rate .01 falling to zero, flips; batches of 128."""
    torch.manual_seed(seed)
    order = torch.randperm(len(data[0]))
    steps = -(-len(order) // 128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for rows in order.split(128):
        x = data[0][rows]
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
        optimizer.zero_grad()
        F.cross_entropy(model(x), data[1][rows]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def row(budget: float, criterion: str, dense: nn.Module, data: Data, train: Data) -> list[Any]:
    """One criterion at one budget; random is the mean of several seeds."""
    before, after, share = [], [], []
    seeds = range(SEEDS if criterion == "random" else 1)
    for seed in seeds:
        small = shrunk(dense, budget, criterion, train, seed)
        share.append(100 * macs_of(small, data) / macs_of(dense, data))
        before.append(100 * sc.evaluate(small, data).top1)
        sc.recalibrate(small, batches(train), batches=32)
        after.append(100 * sc.evaluate(small, data).top1)
    params = 100 * sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in dense.parameters())
    mean = [round(statistics.mean(values), 2) for values in (share, before, after)]
    return [
        criterion,
        round(100 - 100 * budget),
        *mean,
        round(params, 1),
        speedup(dense, small, data),
    ]


def speedup(dense: nn.Module, small: nn.Module, data: Data) -> float:
    """Median milliseconds of the dense network over those of the small one, interleaved, batch 1."""
    times = sc.latency({"dense": dense, "small": small}, data[0][:1], rounds=40)
    return round(times["dense"].median_ms / times["small"].median_ms, 2)


def time_again(dense: nn.Module, data: Data, train: Data) -> None:
    """Measure the speedups of the last run again, where it ran beside other work."""
    path = RESULTS / "resnet20_channels.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    for line in result["rows"][1:]:
        small = shrunk(dense, 1 - line[1] / 100, line[0], train)
        line[-1] = speedup(dense, small, data)
        print(line, flush=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def macs_of(model: nn.Module, data: Data) -> int:
    """Multiply-adds of one image."""
    uses = count_uses(model, data[0][:1])
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return sum(use.times * sizes[use.parameter] for several in uses.weights.values() for use in several)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--times", action="store_true", help="measure the speedups of the last run again, no more")
    options = parser.parse_args()
    shared = options.shared
    torch.set_num_threads(1)
    data, train = exact_test_images(shared), exact_training_images(shared)
    dense = ResNet20().eval()
    dense.load_state_dict(load_file(shared / "data" / "resnet20_cifar10" / "resnet20.safetensors"), strict=False)
    if options.times:
        time_again(dense, data, train)
        return
    accuracy = round(100 * sc.evaluate(dense, data).top1, 2)
    again = copy.deepcopy(dense)
    sc.recalibrate(again, batches(train), batches=32)
    rows: list[list[Any]] = [["dense", 0, 100.0, accuracy, round(100 * sc.evaluate(again, data).top1, 2), 100.0, 1.0]]
    for budget in BUDGETS:
        for criterion in ("l2", "taylor", "random"):
            rows.append(row(budget, criterion, dense, data, train))
            print(rows[-1], flush=True)
    tuned = trained_row(dense, data, train, recompressed(shared, 10_000))
    write(rows, tuned)


def trained_row(dense: nn.Module, data: Data, train: Data, images: Data) -> dict[str, float]:
    """One budget after one epoch, and the dense network after the same epoch: the images are not the exact ones."""
    budget, criterion = TRAINED
    small, same = shrunk(dense, budget, criterion, train), copy.deepcopy(dense)
    found: dict[str, float] = {}
    for name, model in (("small", small), ("dense", same)):
        train_one_epoch(model, images)
        sc.recalibrate(model, batches(train), batches=32)  # the exact images have other statistics
        found[name] = round(100 * sc.evaluate(model, data).top1, 2)
        print(name, found[name], flush=True)
    return found


def write(rows: list[list[Any]], tuned: dict[str, float]) -> None:
    machine = environment().to_record()
    budget, criterion = TRAINED
    result = {
        "title": "ResNet-20 on CIFAR-10, channels removed for good: accuracy on 1,000 exact test images",
        "columns": [
            "criterion",
            "fewer multiply-adds asked, %",
            "multiply-adds left, %",
            "accuracy, no training, %",
            "with batch norms recalibrated, %",
            "parameters left, %",
            "speedup, batch 1",
        ],
        "rows": rows,
        "trained": tuned,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": (
            f"Random is the mean of {SEEDS} seeds. With {round(100 - 100 * budget)} % fewer multiply-adds "
            f"by {criterion} and one epoch on 10,000 recompressed training images, "
            "batch norms recalibrated on exact ones: "
            f"{tuned['small']} %; the dense network after the same epoch {tuned['dense']} % (one seed). "
            "Standard error of 90 % on 1,000 images: .9 points. Widths are not rounded: at one image odd widths cost "
            "what the multiply-adds save. Recalibration costs the untouched network three points: its stored "
            "statistics are not those of these images alone (likewise with augmentation or other batch sizes)."
        ),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "resnet20_channels.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
