"""Removing half the channels of every architecture of the tests: which library passes which.

    python -m benchmarks.removal.table                       # about 15 minutes; resumes where it stopped
    python -m benchmarks.removal.table --library torch-pruning --only unet swin

A pass: parameters are gone, the smaller model runs at batch 1 and 3, gives outputs of the same shapes, and the values
of the original with zeros in place of what was removed. Each in a process of its own with 60 s.
Both are judged by the same code, from the tensors alone. Writes benchmarks/results/removal_table.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.removal.limited import run_module

__all__ = ["CATEGORIES", "main"]

RESULT = Path(__file__).resolve().parents[1] / "results" / "removal_table.json"
DEFAULT = ("torch-pruning", "secateur")
LIMIT_S = 60.0
CATEGORIES = {
    "pass": "smaller, same shapes, same values as the masked model",
    "norm": "smaller, same shapes; the values differ, and a layer, group or RMS norm was narrowed, which may be why",
    "no-op": "nothing was removed, and nothing said so",
    "error before change": "an error before anything was changed",
    "error after change": "an error after the model was being changed, or the smaller model does not run",
    "wrong values": "runs, but computes something else than the masked model",
    "wrong shape": "runs, but gives outputs of another shape",
    "timeout": f"not done after {LIMIT_S:.0f} s",
}


def names() -> list[str]:
    """Of all architectures, in order."""
    from tests.removal.zoo.table import ARCHITECTURES

    return [architecture.name for architecture in ARCHITECTURES]


def one(library: str, name: str) -> dict[str, Any]:
    """One library on one architecture, in a process of its own."""
    found = run_module("benchmarks.removal.judged", library, name, limit_s=LIMIT_S)
    base = {"architecture": name, "library": library, "seconds": round(found.seconds, 1)}
    if found.status == "timeout":
        return {**base, "category": "timeout"}
    if found.record is None or "category" not in found.record:
        return {**base, "category": "error after change", "detail": f"the process died: {found.error.strip()[-300:]}"}
    return {**base, **found.record}


def cell(run: dict[str, Any] | None) -> str:
    """Category, and the share of the parameters that is left where some went."""
    if run is None:
        return "not run"
    return f"{run['category']} ({run['kept']:.0%})" if run.get("kept", 1.0) < 1 else run["category"]


def result(runs: list[dict[str, Any]], order: list[str]) -> dict[str, Any]:
    """The table, the counts per category, and every run."""
    from benchmarks.removal.libraries import versions
    from secateur.measure.environment import environment

    libraries = [name for name in DEFAULT if any(run["library"] == name for run in runs)]
    by = {(run["architecture"], run["library"]): run for run in runs}
    counts = {name: Counter(run["category"] for run in runs if run["library"] == name) for name in libraries}
    return {
        "title": "Half the channels of every architecture: what comes of it (and the parameters left)",
        "columns": ["architecture", *libraries],
        "rows": [[name, *(cell(by.get((name, library))) for library in libraries)] for name in order],
        "counts": {name: dict(found.most_common()) for name, found in counts.items()},
        "categories": CATEGORIES,
        "runs": runs,
        "versions": versions(),
        "environment": {**asdict(environment()), "threads": 1},
        "note": f"Each in its own process, {LIMIT_S:.0f} s. torch-pruning is told the output layers and, where modules "
        "name them as usual, the head counts; secateur only the example inputs.",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="*", default=list(DEFAULT), choices=DEFAULT, help="default: both")
    parser.add_argument("--only", nargs="*", help="names of architectures; default: all")
    parser.add_argument("--fresh", action="store_true", help="forget what was found before")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    order = names()
    unknown = sorted(set(options.only or ()) - set(order))
    if unknown:
        parser.error(f"no architecture {unknown[0]!r}; there are {', '.join(order)}")
    runs: list[dict[str, Any]] = []
    if options.output.exists() and not options.fresh:
        runs = json.loads(options.output.read_text(encoding="utf-8"))["runs"]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for name in options.only or order:
        for library in options.library:
            if any((run["architecture"], run["library"]) == (name, library) for run in runs):
                continue
            runs.append(one(library, name))
            print(f"{name:32s} {library:14s} {cell(runs[-1]):24s} {runs[-1].get('detail', '')[:120]}", flush=True)
            options.output.write_text(json.dumps(result(runs, order), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result(runs, order)["counts"], indent=1))


if __name__ == "__main__":
    main()
