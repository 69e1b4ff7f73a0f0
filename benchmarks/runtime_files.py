"""What starting a packed model costs: packing with measurements, from the cache, and out of a packed file.

    python -m benchmarks.runtime_files                              # about two minutes
    python -m benchmarks.runtime_files --networks mlp --output /tmp/quick.json

Every step runs in a process of its own, on one thread, with a cache of its own; seconds are of the step alone, torch
and secateur being imported. Random masks at 90 %: synthetic. MB/s are dense bytes of the weights by the seconds of
`sc.load` and the first call, which packs what the file did not bring packed. Writes
benchmarks/results/runtime_files.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from benchmarks.removal.convolutional import ResNet
from secateur.measure.environment import environment

__all__ = ["main"]

RESULT = Path(__file__).parent / "results" / "runtime_files.json"
COLUMNS = (
    "network",
    "gain",
    "packed by measuring, s (wanted: 20)",
    "from the cache, s (wanted: 3)",
    "dense weights, MB",
    "file, MB",
    "with blobs, MB",
    "loaded and first call, s (wanted: 200 MB/s)",
    "with blobs, s",
)


def resnet50() -> tuple[nn.Module, Tensor]:
    """All convolutions but the stem, which has three channels."""
    return pruned(ResNet((3, 4, 6, 3), bottleneck=True)), torch.randn(1, 3, 224, 224)


def mlp() -> tuple[nn.Module, Tensor]:
    """The linear layers of twelve transformer blocks, as a chain."""
    layers: list[nn.Module] = []
    for _ in range(12):
        layers += [nn.Linear(768, 768), nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768)]
    return pruned(nn.Sequential(*layers)), torch.randn(64, 768)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"resnet50": resnet50, "mlp": mlp}


def pruned(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.shape[1] != 3:
            parameter.data[torch.rand(parameter.shape, generator=generator) < 0.9] = 0.0
    return model.eval()


def dense_bytes(fast: sc.PackedModel) -> int:
    nodes = [node for region in fast.regions for node in region.graph.nodes]
    return sum(node.weight.nbytes for node in nodes if node.weight is not None)


def pack_step(network: str, folder: Path, save: bool) -> dict[str, Any]:
    """Pack; and write both files where asked to."""
    model, x = NETWORKS[network]()
    begin = time.perf_counter()
    fast = sc.pack(model, x, threads=1)
    found: dict[str, Any] = {"seconds": time.perf_counter() - begin, "gain": fast.explain().gain}
    if save:
        found["dense_bytes"] = dense_bytes(fast)
        found["file_bytes"] = sc.save(fast, folder / "plain.safetensors")
        found["blob_file_bytes"] = sc.save(fast, folder / "blobs.safetensors", blobs=True)
        torch.save((x, fast(x)), folder / "answer.pt")
    return found


def load_step(folder: Path, name: str) -> dict[str, Any]:
    """Load a file and call it once: that is when the kernels' streams are made."""
    x, wanted = torch.load(folder / "answer.pt")
    begin = time.perf_counter()
    fast = sc.load(folder / f"{name}.safetensors")
    assert isinstance(fast, sc.PackedModel)
    loaded = time.perf_counter()
    y = fast(x)
    end = time.perf_counter()
    assert torch.equal(y, wanted)
    return {"seconds": end - begin, "load_seconds": loaded - begin, "first_call_seconds": end - loaded}


STEPS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "measured": lambda network, folder: pack_step(network, folder, save=True),
    "cached": lambda network, folder: pack_step(network, folder, save=False),
    "plain": lambda _, folder: load_step(folder, "plain"),
    "blobs": lambda _, folder: load_step(folder, "blobs"),
}


def alone(step: str, network: str, folder: Path) -> dict[str, Any]:
    """One step in a process of its own."""
    environment = dict(os.environ, SECATEUR_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "benchmarks.runtime_files", "--step", step, "--networks", network]
    run = subprocess.run([*command, "--folder", str(folder)], env=environment, check=True, stdout=subprocess.PIPE)
    return json.loads(run.stdout.splitlines()[-1])


def measure(network: str, repeats: int) -> dict[str, Any]:
    """All steps of one network; the median of those that are short."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = alone("measured", network, folder)
        others = {step: [alone(step, network, folder) for _ in range(repeats)] for step in ("cached", "plain", "blobs")}
    seconds = {step: median(run["seconds"] for run in runs) for step, runs in others.items()}
    dense = first["dense_bytes"]
    return {
        "network": network,
        "dense_bytes": dense,
        "file_bytes": first["file_bytes"],
        "blob_file_bytes": first["blob_file_bytes"],
        "pack_seconds": {"measured": first["seconds"], "cached": seconds["cached"]},
        "load_seconds": {step: seconds[step] for step in ("plain", "blobs")},
        "load_mb_per_s": {step: dense / 1e6 / seconds[step] for step in ("plain", "blobs")},
        "gain": first["gain"],
        "runs": others,
    }


def table_row(found: dict[str, Any]) -> list[Any]:
    pack, load, rate = found["pack_seconds"], found["load_seconds"], found["load_mb_per_s"]
    return [
        found["network"],
        found["gain"],
        pack["measured"],
        pack["cached"],
        found["dense_bytes"] / 1e6,
        *(found[name] / 1e6 for name in ("file_bytes", "blob_file_bytes")),
        *(f"{load[name]:.2f} ({rate[name]:.0f} MB/s)" for name in ("plain", "blobs")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=3, help="of the short steps (default 3)")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.step is not None:
        print(json.dumps(STEPS[options.step](options.networks[0], options.folder)))
        return
    found: list[dict[str, Any]] = []
    for network in options.networks:
        found.append(measure(network, options.repeats))
        print(dict(zip(COLUMNS, table_row(found[-1]), strict=True)), flush=True)
    result = {
        "title": "Starting a packed model: measured, from the cache, out of a file; float32, one thread",
        "columns": list(COLUMNS),
        "rows": [table_row(each) for each in found],
        "runs": found,
        "environment": asdict(environment()),
        "note": (__doc__ or "").split("\n\n")[2].replace("\n", " "),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
