"""Time and memory of planning and removing half the channels, beside torch-pruning in the same run.

    python -m benchmarks.removal.planning                          # about 40 minutes; resumes where it stopped
    python -m benchmarks.removal.planning --library torch-pruning --repeats 1 --shapes ResNet-50

Every run is a process of its own on one thread, with 130 s; libraries alternate. Timed is what the user calls,
from the untouched model to the smaller one, after one forward pass. Random weights: synthetic.
Results go to benchmarks/results/removal_planning.json after every run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.removal.limited import peak_bytes, run_module, say

__all__ = ["main"]

RESULT = Path(__file__).resolve().parents[1] / "results" / "removal_planning.json"
NAMES = ("ResNet-50", "DenseNet-121", "ViT-B/16", "Swin-T", "Swin-T, modules")
DEFAULT = ("torch-pruning", "secateur", "secateur, one call", "secateur, exact=False")
LIMIT_S = 130.0
SPARSITY = 0.5


def child(library: str, name: str) -> None:
    """In the process: remove, time, and see that the smaller model runs."""
    import torch

    from benchmarks.removal.libraries import LIBRARIES, PACKAGES
    from benchmarks.removal.shapes import build, image

    torch.set_num_threads(1)
    importlib.import_module(PACKAGES[library])
    model, x = build(name), image(1)
    with torch.no_grad():
        wanted = model(x).shape
    before = {"parameters": sum(p.numel() for p in model.parameters()), "base_bytes": peak_bytes()}
    say(before)
    cpu = time.process_time()
    removed = LIBRARIES[library](model, x, SPARSITY)
    took = {"wall_s": sum(removed.phases.values()), "cpu_s": time.process_time() - cpu}
    peak = peak_bytes()
    kept = sum(p.numel() for p in removed.model.parameters())
    record = {**before, **took, **removed.phases, "peak_bytes": peak, "kept": kept, "runs": False}
    say(record)  # should the smaller model not run
    with torch.no_grad():
        say({**record, "runs": removed.model.eval()(x).shape == wanted})


def one(library: str, name: str) -> dict[str, Any]:
    """A run in a process of its own, as a plain record."""
    found = run_module("benchmarks.removal.planning", "--child", library, "--shapes", name, limit_s=LIMIT_S)
    base = {"library": library, "shape": name, "status": found.status}
    if found.record is not None and "wall_s" in found.record:
        return {**base, "status": "done", **found.record, "error": last_line(found.error)}
    if found.status == "timeout":
        return {**base, "wall_s": LIMIT_S, "peak_bytes": found.peak, **(found.record or {})}
    return {**base, "status": "error", "error": last_line(found.error)}


def last_line(text: str) -> str:
    """Of a traceback, what went wrong."""
    return text.strip().splitlines()[-1] if text.strip() else ""


def row(library: str, name: str, runs: list[dict[str, Any]]) -> list[Any]:
    """Medians over the runs of one library on one shape; a limit that was reached is said, not averaged."""
    odd = sorted({run["status"] for run in runs if run["status"] != "done"})
    if odd:
        peaks = [run["peak_bytes"] / 2**20 for run in runs if "peak_bytes" in run]
        peak = round(statistics.median(peaks)) if peaks else None
        return [name, library, " and ".join(odd), None, None, peak, None, len(runs)]
    walls = [run["wall_s"] for run in runs]
    kept = 100 * runs[0]["kept"] / runs[0]["parameters"]
    return [
        name,
        library,
        round(statistics.median(walls), 2),
        f"{min(walls):.2f} to {max(walls):.2f}",
        round(statistics.median(run["cpu_s"] for run in runs), 2),
        round(statistics.median(run["peak_bytes"] for run in runs) / 2**20),
        round(kept, 1) if all(run["runs"] for run in runs) else "does not run",
        len(runs),
    ]


def result(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The table and all that it was made of."""
    from benchmarks.removal.libraries import versions
    from secateur.measure.environment import environment

    pairs = list(dict.fromkeys((run["shape"], run["library"]) for run in runs))
    pairs.sort(key=lambda pair: NAMES.index(pair[0]))
    groups = {pair: [r for r in runs if (r["shape"], r["library"]) == pair] for pair in pairs}
    return {
        "title": "Planning and removing half the channels, one thread",
        "columns": ["", "library", "seconds", "least to most", "CPU seconds", "peak MiB", "parameters kept, %", "runs"],
        "rows": [row(library, name, found) for (name, library), found in groups.items()],
        "runs": runs,
        "versions": versions(),
        "environment": {**asdict(environment()), "threads": 1},
        "note": f"Medians; each run in its own process, stopped after {LIMIT_S:.0f} s. Random weights (synthetic). "
        "Peak memory is of the whole process, torch included. exact=False also narrows streams with layer norms, "
        "as torch-pruning does. One call: sc.shrink(sparsity=) without sc.prune before. torch-pruning is told the "
        "output layer and the head counts.",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--library", nargs="*", default=list(DEFAULT), choices=DEFAULT, help="default: all")
    parser.add_argument("--shapes", nargs="*", default=list(NAMES), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.shapes[0])
        return
    runs: list[dict[str, Any]] = []
    if options.output.exists() and not options.fresh:
        runs = json.loads(options.output.read_text(encoding="utf-8"))["runs"]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for repeat in range(options.repeats):
        for name in options.shapes:
            for library in options.library:
                if sum((r["shape"], r["library"]) == (name, library) for r in runs) > repeat:
                    continue
                runs.append(one(library, name))
                print(runs[-1], flush=True)
                options.output.write_text(json.dumps(result(runs), indent=1) + "\n", encoding="utf-8")
    for line in result(runs)["rows"]:
        print(line)


if __name__ == "__main__":
    main()
