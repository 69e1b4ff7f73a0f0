"""A published ResNet-20 for CIFAR-10: what it is worth that kept channels stand in for removed ones.

    python benchmarks/resnet20_merge.py        # writes benchmarks/results/resnet20_merge.json, under a minute

A share of the channels inside its blocks is removed at once by each criterion that merges, without and with
``merge=True``; nothing is trained, refitted or recalibrated. Accuracy on the first 1,000 test images in exact pixels;
correlations are of 640 exact training images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from resnet20_channels import exact_training_images
from resnet20_oneshot import RESULTS, SHARED, exact_test_images
from safetensors.torch import load_file

import secateur as sc
from secateur.benchmark.models import ResNet20
from secateur.measure import environment

CRITERIA = ("cosine", "srinivas_babu", "activation_correlation")
SHARES = (0.1, 0.2, 0.3)
INNER = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]


def main() -> None:
    """Every criterion and share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, images = exact_test_images(options.shared), exact_training_images(options.shared)[0][:640]
    dense = ResNet20().eval()
    weights = load_file(options.shared / "data" / "resnet20_cifar10" / "resnet20.safetensors")
    dense.load_state_dict(weights, strict=False)
    rows: list[list[Any]] = [["dense", 0, *[round(100 * sc.evaluate(dense, data).top1, 2)] * 2]]
    for criterion in CRITERIA:
        for share in SHARES:
            found: list[float] = []
            for merge in (False, True):
                given: dict[str, Any] = {"targets": INNER, "example_inputs": images[:2], "data": list(images.split(64))}
                model, _ = sc.prune(
                    dense, share, criterion=criterion, unit="channel", merge=merge, inplace=False, **given
                )
                found.append(round(100 * sc.evaluate(model, data).top1, 2))
            rows.append([criterion, round(100 * share), *found])
            print(*rows[-1], flush=True)
    machine = environment().to_record()
    result = {
        "title": "ResNet-20 on CIFAR-10, channels inside its blocks removed once, no training: what merging is worth",
        "columns": ["criterion", "channels removed, %", "accuracy, %", "merged, %"],
        "rows": rows,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": (
            "Merged: kept channels take over what was read of removed ones, by rows (cosine, srinivas_babu) or by "
            "least squares of what is read (activation_correlation). Standard error of 90 % on 1,000 images: .9 points."
        ),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "resnet20_merge.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
