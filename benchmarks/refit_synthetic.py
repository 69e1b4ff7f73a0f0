"""An exact refit beside SparseGPT and OBC on layers that nobody trained: relative output error.

    python benchmarks/refit_synthetic.py

Inputs with a falling spectrum in a random basis, and columns of different size, ``x = z diag(k^-p) Q diag(s)``;
Gaussian weights. Ten layers of each kind; half of the tokens calibrate, the error is taken on the other half.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from secateur.measure import environment

RESULT = Path(__file__).resolve().parent / "results" / "refit_synthetic.json"
ROWS, COLUMNS, TOKENS, LAYERS = 128, 256, 4096, 10
SPECTRA = {"white": 0.0, "mild": 0.5, "steep": 1.0}
AMOUNTS: dict[str, float | sc.NM] = {"50 %": 0.5, "70 %": 0.7, "2:4": sc.NM(2, 4)}
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"solver": "none", "criterion": "magnitude"},
    "magnitude, refit": {"solver": "refit", "criterion": "magnitude"},
    "wanda": {"solver": "none", "criterion": "wanda", "within": "row"},
    "wanda, refit": {"solver": "refit", "criterion": "wanda", "within": "row"},
    "sparsegpt": {"solver": "sparsegpt"},
    "sparsegpt, refit": {"solver": "sparsegpt", "again": True},
    "obc": {"solver": "obc"},
}


def layer(power: float, seed: int) -> tuple[nn.Linear, Tensor, Tensor]:
    """A layer, inputs to calibrate on, inputs to measure on."""
    torch.manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS))[0]
    sizes = torch.exp(0.5 * torch.randn(COLUMNS))
    spectrum = torch.arange(1, COLUMNS + 1) ** -power
    x = torch.randn(TOKENS, COLUMNS) * spectrum @ basis * sizes
    net = nn.Linear(COLUMNS, ROWS, bias=False)
    nn.init.normal_(net.weight)
    return net, x[: TOKENS // 2], x[TOKENS // 2 :]


def error(power: float, seed: int, amount: float | sc.NM, choices: dict[str, Any]) -> float:
    net, calibration, held_out = layer(power, seed)
    expected = held_out @ net.weight.detach().T
    given = dict(choices)
    again = given.pop("again", False)
    given |= {"within": amount} if isinstance(amount, sc.NM) else {"sparsity": amount}
    sc.reconstruct(net, data=calibration, **given)
    if again:
        sc.reconstruct(net, data=calibration)
    return float((held_out @ net.weight.detach().T - expected).norm() / expected.norm())


def main() -> None:
    torch.set_num_threads(1)
    rows: list[list[Any]] = []
    for kind, power in SPECTRA.items():
        for name, amount in AMOUNTS.items():
            found = {m: [error(power, seed, amount, c) for seed in range(LAYERS)] for m, c in METHODS.items()}
            wins = sum(a < b for a, b in zip(found["wanda, refit"], found["sparsegpt"], strict=True))
            means = [round(statistics.mean(values), 4) for values in found.values()]
            rows.append([kind, name, *means, f"{wins} of {LAYERS}"])
            print(*rows[-1], sep="  ", flush=True)
    machine = environment().to_record()
    result = {
        "title": "Relative output error of untrained layers on tokens that were not calibrated on",
        "columns": ["inputs", "weights removed", *METHODS, "wanda with refit below sparsegpt"],
        "rows": rows,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": f"{ROWS} x {COLUMNS} layers, {TOKENS // 2} tokens to calibrate on; means over {LAYERS} layers.",
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
