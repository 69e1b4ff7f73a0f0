"""What sparsity gains on whole networks: `pack` beside every dense runtime, one process each, one thread.

    python -m benchmarks.runtime_networks                    # half an hour; resumes where it stopped
    python -m benchmarks.runtime_networks --cases "ResNet-18" --rounds 5 --output /tmp/quick.json

The headline rows have trained masks, with accuracy: the given ResNet-20 fine-tuned for two epochs, LeNet-300-100 on
Fashion-MNIST with single weights and with 4x1 blocks removed. Tiny Darknet is pruned without training and
refitted, so its row says how often it agrees with its dense self. The large networks have random weights and masks:
synthetic, for time alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from benchmarks.removal.convolutional import MobileNetV1, ResNet
from benchmarks.runtime_nets import BertBlock, TinyDarknet, randomly_sparse
from secateur.benchmark.models import ResNet20, lenet_300_100
from secateur.measure import environment
from secateur.measure.rivals import Rivals, compare

RESULT = Path(__file__).resolve().parent / "results" / "runtime_networks.json"
SHARED = Path(os.environ.get("SECATEUR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
RUNTIMES = ("eager", "compile-frozen", "onnxruntime", "openvino", "openvino-bf16", "packed")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Made = tuple[nn.Module, Tensor, str]  # network, input, what it is worth


@dataclass(frozen=True)
class Case:
    """One row: a network with its zeros, the images of a call, and the gain that was asked for."""

    name: str
    sparsity: float
    batch: int
    make: Callable[[Path, float, int], Made]
    goal: float | None = None
    weights: str = "synthetic"


def image_network(make: Callable[[], nn.Module]) -> Callable[[Path, float, int], Made]:
    def made(shared: Path, sparsity: float, batch: int) -> Made:
        torch.manual_seed(0)
        return randomly_sparse(make(), sparsity), torch.randn(batch, 3, 224, 224), ""

    return made


def bert(shared: Path, sparsity: float, batch: int) -> Made:
    torch.manual_seed(0)
    return randomly_sparse(BertBlock(), sparsity), torch.randn(batch, 128, 768), ""


def cifar(shared: Path, part: str) -> tuple[Tensor, Tensor]:
    with np.load(shared / "data" / "cifar10" / "cifar10_exact_5000.npz", allow_pickle=False) as archive:
        pixels, labels = archive[f"x_{part}"], archive[f"y_{part}"]
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (x - mean) / std, torch.from_numpy(labels.astype(np.int64)).flatten()


def resnet20(shared: Path, sparsity: float, batch: int) -> Made:
    """The given weights, global magnitude, ten epochs on 4,000 exact images."""
    torch.manual_seed(0)
    model = ResNet20().eval()
    model.load_state_dict(load_file(shared / "data" / "resnet20_cifar10" / "resnet20.safetensors"), strict=False)
    test = cifar(shared, "test")
    before = 100 * sc.evaluate(model, test).top1
    sc.prune(model, sparsity)
    training = sc.Training(
        10, "sgd", lr=0.02, weight_decay=1e-4, lr_schedule="cosine", loss=F.cross_entropy, batch_size=128
    )
    sc.fit(model, cifar(shared, "train"), training, progress=False)
    after = 100 * sc.evaluate(model, test).top1
    return model.eval(), test[0][:batch].contiguous(), f"{after:.1f} % (dense {before:.1f})"


def lenet(unit: str) -> Callable[[Path, float, int], Made]:
    def made(shared: Path, sparsity: float, batch: int) -> Made:
        torch.manual_seed(0)
        with np.load(shared / "data" / "fashion_mnist" / "fashion_mnist.npz", allow_pickle=False) as archive:
            x, y, test_x, test_y = (
                torch.from_numpy(archive[name]) for name in ("x_train", "y_train", "x_test", "y_test")
            )
        train, test = ((a.float() / 255).flatten(1).sub(0.2860).div(0.3530) for a in (x, test_x))
        model = lenet_300_100()
        recipe = {"optimizer": "sgd", "loss": F.cross_entropy, "batch_size": 128, "lr_schedule": "cosine"}
        sc.fit(model, (train, y.long()), sc.Training(8, lr=0.05, **recipe), progress=False)
        before = 100 * sc.evaluate(model, (test, test_y.long())).top1
        for share in (0.5 * sparsity, 0.8 * sparsity, sparsity):
            sc.prune(model, share, unit=unit)
            sc.fit(model, (train, y.long()), sc.Training(4, lr=0.05, **recipe), progress=False)
        after = 100 * sc.evaluate(model, (test, test_y.long())).top1
        return model.eval(), test[:batch].contiguous(), f"{after:.1f} % (dense {before:.1f})"

    return made


def smooth_noise(count: int, seed: int) -> Tensor:
    rough = torch.rand(count, 3, 14, 14, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(rough, size=(224, 224), mode="bilinear")


def darknet(shared: Path, sparsity: float, batch: int) -> Made:
    """No images of its classes are at hand: smooth noise calibrates the refit, other such noise asks for answers."""
    model = TinyDarknet().eval()
    folder = shared / "data" / "tinydarknet"
    model.load_state_dict(load_file(next(folder.glob("*.safetensors"))), strict=False)
    dense, images = copy.deepcopy(model), smooth_noise(64, 0)
    sc.prune(model, sparsity, allocation="global")
    before = agreement(model, dense, images)
    sc.reconstruct(model, data=list(smooth_noise(128, 1).split(16)))
    after = agreement(model, dense, images)
    worth = f"agrees on {after:.0f} % of 64 synthetic images (before the refit {before:.0f} %)"
    return model, images[:batch].contiguous(), worth


@torch.no_grad()
def agreement(model: nn.Module, dense: nn.Module, images: Tensor) -> float:
    return 100 * float((model(images).argmax(1) == dense(images).argmax(1)).float().mean())


CASES = (
    Case("ResNet-20", 0.8, 1, resnet20, None, "trained"),
    Case("ResNet-20", 0.9, 1, resnet20, 4.3, "trained"),
    Case("LeNet-300-100", 0.95, 1, lenet("weight"), None, "trained"),
    Case("LeNet-300-100", 0.95, 64, lenet("weight"), None, "trained"),
    Case("LeNet-300-100, 4x1 blocks", 0.9, 1, lenet("block(4, 1)"), None, "trained"),
    Case("LeNet-300-100, 4x1 blocks", 0.9, 64, lenet("block(4, 1)"), None, "trained"),
    Case("Tiny Darknet", 0.5, 1, darknet, None, "pruned, refitted"),
    Case("ResNet-50", 0.9, 1, image_network(lambda: ResNet((3, 4, 6, 3), bottleneck=True)), 3.0),
    Case("ResNet-50", 0.9, 16, image_network(lambda: ResNet((3, 4, 6, 3), bottleneck=True)), 4.2),
    Case("ResNet-18", 0.9, 1, image_network(lambda: ResNet((2, 2, 2, 2), bottleneck=False)), 3.0),
    Case("MobileNetV1", 0.8, 1, image_network(MobileNetV1), 2.1),
    Case("MobileNetV1", 0.9, 1, image_network(MobileNetV1), 3.2),
    Case("BERT-base block, 128 tokens", 0.9, 1, bert, 4.5),
)


def measured(case: Case, shared: Path, rounds: int) -> dict[str, Any]:
    model, x, worth = case.make(shared, case.sparsity, case.batch)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found: Rivals = compare(model, x, runtimes=RUNTIMES, rounds=rounds, budget_s=60 if case.batch == 1 else 150)
    found.print()
    times = {row.name: row.median_ms for row in found.rows if row.status == "timed"}
    states = {row.name: row.status for row in found.rows}
    return {
        "name": case.name, "sparsity": case.sparsity, "batch": case.batch, "weights": case.weights, "worth": worth,
        "goal": case.goal, "best": found.best, "ms": times, "states": states, "spread": found.spread,
        "gains": {row.name: row.gain for row in found.rows},
        "off_by": {row.name: row.off_by for row in found.rows},
    }  # fmt: skip


def row(run: dict[str, Any]) -> list[Any]:
    ms, best = run["ms"], run["best"]
    packed, bf16 = ms.get("packed"), ms.get("openvino-bf16")
    gains = run["gains"]
    return [
        run["name"], run["batch"], f"{run['sparsity']:.0%}", run["weights"], run["worth"] or None,
        f"{ms[best]:.3g} ({best})", bf16, packed, gains["packed"], run["goal"],
        gains["packed"] / gains["openvino-bf16"] if packed and bf16 else None,
    ]  # fmt: skip


def report(runs: list[dict[str, Any]]) -> dict[str, Any]:
    machine = environment().to_record()
    spreads = [run["spread"] for run in runs if run["spread"]]
    again = (
        f"{min(low for low, _ in spreads):.2f} to {max(high for _, high in spreads):.2f}" if spreads else "not taken"
    )
    return {
        "title": "Whole networks: milliseconds a call, one thread",
        "columns": [
            "network", "images", "zeros", "weights", "accuracy", "best dense float32, ms", "dense bf16 (OpenVINO), ms",
            "packed float32, ms", "times faster", "wanted", "times faster than bf16",
        ],
        "rows": [row(run) for run in runs],
        "runs": runs,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": (
            "Every runtime in a process of its own, in turns; medians of rounds, ratios round by round; the best of "
            "eager torch, torch.compile frozen, onnxruntime and OpenVINO in float32. Eager torch against itself in two "
            f"processes: {again}. Synthetic: random weights and masks, for time alone."
        ),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", help="names to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    log = options.output.with_suffix(".runs.jsonl")
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    ready = {(run["name"], run["sparsity"], run["batch"]): run for run in map(json.loads, lines)}
    wanted = [case for case in CASES if not options.cases or case.name in options.cases]
    for case in wanted:
        key = case.name, case.sparsity, case.batch
        if key not in ready:
            ready[key] = measured(case, options.shared, options.rounds)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(ready[key]) + "\n")
        print(*row(ready[key]), sep="  ", flush=True)
    runs = [ready[case.name, case.sparsity, case.batch] for case in wanted]
    options.output.write_text(json.dumps(report(runs), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
