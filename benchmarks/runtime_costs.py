"""How well the cost table foresees what `pack` will bring: predicted beside measured milliseconds.

    python -m benchmarks.runtime_costs

The table is measured at 0, 50, 70, 80, 90, 95 and 98 % zeros; the networks are packed at sparsities between them.
Random weights and masks, one thread. Writes benchmarks/results/runtime_costs.json.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from benchmarks.removal.convolutional import ResNet
from benchmarks.runtime_nets import BertBlock, randomly_sparse
from secateur.benchmark.models import ResNet20, lenet_300_100
from secateur.measure import environment

RESULT = Path(__file__).resolve().parent / "results" / "runtime_costs.json"
BETWEEN = (0.6, 0.75, 0.85, 0.925)


def cases() -> list[tuple[str, nn.Module, Tensor]]:
    torch.manual_seed(0)
    return [
        ("LeNet-300-100, 64 images", lenet_300_100(), torch.randn(64, 784)),
        ("ResNet-20", ResNet20(), torch.randn(1, 3, 32, 32)),
        ("BERT-base block, 128 tokens", BertBlock(), torch.randn(1, 128, 768)),
        ("ResNet-18", ResNet((2, 2, 2, 2), bottleneck=False), torch.randn(1, 3, 224, 224)),
    ]


def main() -> None:
    torch.set_num_threads(1)
    rows: list[list[Any]] = []
    for name, model, x in cases():
        begin = time.perf_counter()
        table = sc.cost_table(model.eval(), x)
        seconds = time.perf_counter() - begin
        for sparsity in BETWEEN:
            sparse = randomly_sparse(copy.deepcopy(model), sparsity)
            stem = {node.name for node in table.layers if _is_stem(model, node.name)}
            wanted = {layer.name: 0.0 if layer.name in stem else sparsity for layer in table.layers}
            predicted = table.total(wanted)
            measured = sc.pack(sparse, x, threads=1, cache=False).explain().us / 1e3
            rows.append([name, f"{sparsity:.1%}", predicted, measured, predicted / measured, seconds])
            print(*rows[-1], sep="  ", flush=True)
    machine = environment().to_record()
    off = [abs(row[4] - 1) for row in rows]
    result = {
        "title": "The cost table: predicted beside measured milliseconds of packed networks",
        "columns": ["network", "zeros", "predicted, ms", "measured, ms", "ratio", "table taken in, s"],
        "rows": rows,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": f"Sparsities between those of the table. Off by {100 * sum(off) / len(off):.0f} % on average, "
        f"{100 * max(off):.0f} % at most; a packed model pays for its call too, which the table does not know.",
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _is_stem(model: nn.Module, name: str) -> bool:
    """Left dense by `randomly_sparse`."""
    weight = model.get_parameter(f"{name}.weight")
    return weight.shape[1] <= 3


if __name__ == "__main__":
    main()
