"""A trained language model pruned without training: magnitude, Wanda, RIA, SparseGPT, OBC, with and without refit.

    python -m benchmarks.language_model [--held-out 200] [--calibration 128]

Nats per token on held-out stories. Every layer loses the same share, with OWL more where few outliers are; layers are
pruned one after another on what the pruned layers before them make. "Without refit" is the mask alone, or the solver's
own update; "with refit" is the same mask with kept weights fitted by least squares. "Permuted": channels are first
brought into an order in which the pattern loses less of the criterion's score. Cases that the result file already
has are not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

import secateur as sc
from benchmarks.language_model_net import Decoder, load_decoder, nats, stories
from secateur.measure import environment

RESULT = Path(__file__).resolve().parent / "results" / "language_model.json"
SHARED = Path(os.environ.get("SECATEUR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"criterion": "magnitude"},
    "wanda": {"criterion": "wanda", "within": "row"},
    "ria": {"criterion": "ria", "within": "row"},
    "wanda, permuted": {"criterion": "wanda", "within": "row", "permuted": True},
    "ria, permuted": {"criterion": "ria", "within": "row", "permuted": True},
    "wanda, owl": {"criterion": "wanda", "within": "row", "allocation": "owl"},
    "sparsegpt, owl": {"solver": "sparsegpt", "criterion": "wanda", "allocation": "owl"},
    "sparsegpt": {"solver": "sparsegpt"},
    "obc": {"solver": "obc"},
}
AMOUNTS: dict[str, float | sc.NM] = {"50 %": 0.5, "60 %": 0.6, "2:4": sc.NM(2, 4)}
BATCH = 16


def pruned(
    dense: Decoder, method: str, amount: float | sc.NM, refit: bool, data: list[torch.Tensor]
) -> tuple[Decoder, float]:
    """The pruned model, and the mean over layers of their relative output error."""
    model, choices = copy.deepcopy(dense), dict(METHODS[method])
    chooses = "solver" in choices
    if choices.pop("permuted", False):
        assert isinstance(amount, sc.NM)  # an order changes nothing else
        sc.permute_channels(model, amount, example_inputs=data[0][:2], criterion=choices["criterion"], data=data)
    if isinstance(amount, sc.NM):
        choices["within"] = amount
    else:
        choices["sparsity"] = amount
    if not chooses:
        choices["solver"] = "refit" if refit else "none"
    done = sc.reconstruct(model, data=data, batches=len(data), **choices)
    if chooses and refit:
        done = sc.reconstruct(model, data=data, batches=len(data))
    return model, sum(layer.after for layer in done.layers) / len(done.layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--held-out", type=int, default=200, help="stories to measure on, the last ones")
    parser.add_argument("--calibration", type=int, default=128, help="stories to calibrate on, the first ones")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    data = given.shared / "data"
    dense = load_decoder(data / "babyllama_tok105")
    texts = stories(data / "text" / "tinystories_2MiB.txt", data / "babyllama_tok105" / "tok105.vocab")
    if given.held_out + given.calibration > len(texts):
        raise SystemExit(f"{given.held_out} + {given.calibration} stories are more than the {len(texts)} there are")
    held_out, whole = texts[-given.held_out :], [text[:-1] for text in texts if len(text) == 257]
    calibration = list(torch.stack(whole[: given.calibration]).split(BATCH))
    sizes = f"{given.calibration} stories of 256 tokens, measured on {given.held_out} others"
    rows = read_rows(given.out, sizes)
    for amount, method, refit in [("0 %", "dense", False)] + [
        (amount, method, refit)
        for amount, given_amount in AMOUNTS.items()
        for method in METHODS
        for refit in (False, True)
        if isinstance(given_amount, sc.NM) or "permuted" not in METHODS[method]
        if not (isinstance(given_amount, sc.NM) and "allocation" in METHODS[method])  # a pattern shares out by itself
    ]:
        key = [method, amount, "yes" if refit else "no"]
        if any(row[:3] == key for row in rows):
            continue
        begin = time.perf_counter()
        model, error = (dense, 0.0) if method == "dense" else pruned(dense, method, AMOUNTS[amount], refit, calibration)
        seconds = time.perf_counter() - begin
        rows.append([*key, round(nats(model, held_out), 4), round(error, 4), round(seconds, 1)])
        print(*rows[-1], sep="  ", flush=True)
        write(given.out, rows, sizes)


def read_rows(path: Path, sizes: str) -> list[list[Any]]:
    """What an earlier run with the same stories found."""
    if not path.exists():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    return before["rows"] if before["calibration"] == sizes else []


def write(path: Path, rows: list[list[Any]], sizes: str) -> None:
    machine = environment().to_record()
    result = {
        "title": "A language model of 936,448 parameters, pruned without training: nats per token on held-out stories",
        "calibration": sizes,
        "columns": [
            "method",
            "weights removed",
            "refit",
            "nats per token",
            "mean relative error of layers",
            "seconds, beside other work",
        ],
        "rows": rows,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": (
            "Linear layers of the five blocks; embedding and head stay dense. Wanda and RIA choose in each row. "
            "Permuted: channels are reordered for the pattern first, by the same criterion."
        ),
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
