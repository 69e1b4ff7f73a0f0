"""What one-shot pruning costs at 100 M parameters: seconds, and memory beside the model.

    python benchmarks/prune_speed.py                 # writes benchmarks/results/prune_speed.json, about two minutes
    python benchmarks/prune_speed.py --blocks 2      # a small network, a quick look

The network is a list of linear layers as a transformer of width 768 has them (14 blocks: 99 M weights, 396 MB in
float32), with random weights: what they are does not change the cost. Each case runs in a process of its own, one
thread, three times, a fresh model each; the least time counts. Memory is the highest resident set of the process
during the call, less that before it (Linux: ``VmHWM``, which the kernel keeps and which is reset before the call), as
a share of the weights: what the masks take stays, scores and whatever else was needed come and go. Gradients that a
criterion reads are evidence and given beforehand; they count as there already.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from secateur.core import decide, parse_unit
from secateur.measure.environment import environment
from secateur.model.targets import find_targets

__all__ = ["main"]

RESULT = Path(__file__).parent / "results" / "prune_speed.json"
CASES = {
    "magnitude, global, undo=False": {"undo": False},
    "magnitude, global, undo=True": {"undo": True},
    "magnitude, uniform, undo=False": {"undo": False, "allocation": "uniform"},
    "magnitude, erk, undo=False": {"undo": False, "allocation": "erk"},
    "magnitude, global, filters, undo=False": {"undo": False, "unit": "filter"},
    "magnitude, 2 of 4, undo=False": {"undo": False, "unit": "2 of 4", "sparsity": None},
    "cosine, filters": {"undo": False, "unit": "filter", "criterion": "cosine", "allocation": "uniform"},
    "geometric median, filters": {
        "undo": False,
        "unit": "filter",
        "criterion": "geometric_median",
        "allocation": "uniform",
    },
    "correlation, filters": {
        "undo": False,
        "unit": "filter",
        "criterion": "weight_correlation",
        "allocation": "uniform",
    },
    "snip from given gradients, global, no model": {"criterion": "snip"},
}
LIMIT_S, LIMIT_PAIRS, LIMIT_SHARE = 3.0, 30.0, 0.3


def transformer_like(blocks: int, width: int = 768) -> nn.Sequential:
    """The linear layers of so many blocks."""
    shapes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    return nn.Sequential(*[nn.Linear(i, o, bias=False) for _ in range(blocks) for i, o in shapes])


def resident(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: memory is measured on Linux alone")


def once(name: str, blocks: int) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and bytes beside the model of one call."""
    options: dict[str, Any] = {"sparsity": 0.9} | CASES[name]
    torch.manual_seed(0)
    model = transformer_like(blocks)
    given = [torch.rand(p.shape) for p in model.parameters()] if options.get("criterion") == "snip" else []
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    start, cpu = time.perf_counter(), time.process_time()
    kept = from_evidence(model, given, options) if given else sc.prune(model, **options)
    taken = time.perf_counter() - start, time.process_time() - cpu
    peak = resident("VmHWM") - before
    assert len(kept) >= len(model) - 1  # of the output no filter goes
    return *taken, peak


def from_evidence(model: nn.Module, given: list[torch.Tensor], options: dict[str, Any]) -> Any:
    """The decision alone, from gradients that are there."""
    layout = find_targets(model)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return decide(
        criterion=options["criterion"],
        unit=parse_unit("weight")[0],
        allocation="global",
        within="tensor",
        sparsity=options["sparsity"],
        evidence={"weight": weights, "grad_abs": dict(zip(weights, given, strict=True))},
        layout=layout,
    )


def main() -> None:
    """Every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=14)
    parser.add_argument("--case", choices=CASES, help="run this one here, and print its figures")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.case:
        print(json.dumps(once(asked.case, asked.blocks)))
        return
    weights = sum(p.numel() for p in transformer_like(asked.blocks).parameters())
    rows: list[list[Any]] = []
    for name in CASES:
        command = [sys.executable, __file__, "--case", name, "--blocks", str(asked.blocks)]
        found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
        wall, cpu, peak = (min(values) for values in zip(*found, strict=True))
        rows.append([name, round(wall, 2), round(cpu, 2), round(peak / (4 * weights), 3)])
        print(rows[-1], flush=True)
    machine = asdict(environment())
    result = {
        "title": f"Pruning {weights / 1e6:.0f} M weights once: seconds on one thread, memory beside the model",
        "columns": ["case", "wall s", "CPU s", "memory beside the model, share of the weights"],
        "rows": rows,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": (
            f"The least of three processes each. Wanted of elementwise criteria and global selection: {LIMIT_S} s and "
            f"{LIMIT_SHARE} of the weights' memory, of pairwise ones {LIMIT_PAIRS} s; "
            "with undo=True the removed values are kept besides."
        ),
    }
    asked.out.parent.mkdir(exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
