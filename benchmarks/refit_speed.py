"""The native refit beside a PyTorch loop over rows.

    python benchmarks/refit_speed.py [--threads 2]

Two loops: one that solves the normal equations of each row (index the gram, Cholesky, solve), one that calls
``torch.linalg.lstsq`` on the kept inputs of each row. All in float64, with the same gram; random masks,
50 % of each row.
The loops run over a few rows of large layers, and are scaled up.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.measure import environment
from secateur.native import refit_rows

RESULT = Path(__file__).resolve().parent / "results" / "refit_speed.json"
SHAPES = [(128, 64), (128, 128), (352, 128), (128, 352), (512, 512), (768, 768), (768, 3072)]
LOOPED = 32


def problem(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, gram, weights, masks."""
    torch.manual_seed(0)
    x = torch.randn(2 * columns, columns, dtype=torch.float64)
    gram = x.t() @ x + 0.01 * 2 * columns * torch.eye(columns, dtype=torch.float64)
    kept = torch.rand(rows, columns).argsort(1) < columns // 2
    return x, gram, torch.randn(rows, columns, dtype=torch.float64), kept


def loop(gram: Tensor, targets: Tensor, kept: Tensor) -> Tensor:
    new = torch.zeros_like(targets)
    for row in range(len(targets)):
        on = kept[row].nonzero().squeeze(1)
        factor = torch.linalg.cholesky(gram[on][:, on])
        new[row, on] = torch.cholesky_solve(targets[row, on, None], factor).squeeze(1)
    return new


def lstsq_loop(x: Tensor, weights: Tensor, kept: Tensor) -> Tensor:
    new = torch.zeros_like(weights)
    for row in range(len(weights)):
        on = kept[row].nonzero().squeeze(1)
        new[row, on] = torch.linalg.lstsq(x[:, on], (x @ weights[row])[:, None]).solution.squeeze(1)
    return new


def seconds(run: Callable[[], object], least: float = 0.3) -> float:
    """The best of several runs: what something else slowed does not count."""
    run()
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < least:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def row(rows: int, columns: int) -> list[Any]:
    x, gram, weights, kept = problem(rows, columns)
    targets, some = weights @ gram, slice(0, min(rows, LOOPED))
    share = rows / len(weights[some])
    assert torch.allclose(refit_rows(gram, targets, kept)[some], loop(gram, targets[some], kept[some]), atol=1e-8)
    native = seconds(lambda: refit_rows(gram, targets, kept))
    looped = share * seconds(lambda: loop(gram, targets[some], kept[some]))
    least = share * seconds(lambda: lstsq_loop(x, weights[some], kept[some]))
    times = [round(1e3 * value, 2) for value in (native, looped, least)]
    return [f"{rows} x {columns}", *times, round(looped / native, 1), round(least / native, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    rows: list[list[Any]] = []
    for shape in SHAPES:
        rows.append(row(*shape))
        print(*rows[-1], sep="  ", flush=True)
    machine = environment().to_record()
    result = {
        "title": "Least-squares refit of all rows of a layer, half of the weights removed",
        "columns": [
            "layer, outputs x inputs",
            "native, ms",
            "PyTorch loop, normal equations, ms",
            "PyTorch loop, lstsq, ms",
            "faster than normal equations",
            "faster than lstsq",
        ],
        "rows": rows,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": "float64, best of runs; loops over more than 32 rows are scaled up from 32.",
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
