"""How the score of a coupled channel is made, on three networks with residual streams, before and after training.

    python benchmarks/coupled_channels.py [--seeds 3] [--only ResNet-20]      # resumes where it stopped

A channel of a stream is made by several layers, and may be read by several. Four ways to score it: the mean of the
layers that make it (``"channel"``) or all of their weights at once (``"channel(out, weights)"``), and both with the
layers that read it too (``all`` for ``out``). ``shrink`` meets the same budget of multiply-adds by each.
ResNet-20: one epoch on 10,000 recompressed images. Digits: the residual network 32-64-128, four epochs. The language
model: 60 steps of 8 stories. The seed orders the data, and is that of the dense digits network.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from language_model_net import load_decoder, nats, stories
from resnet20_channels import batches, exact_training_images, recompressed, train_one_epoch
from resnet20_oneshot import RESULTS, SHARED, exact_test_images
from safetensors.torch import load_file
from torch import Tensor, nn

import secateur as sc
from secateur.benchmark.data import digits
from secateur.benchmark.models import Residual, ResNet20
from secateur.measure import environment

WAYS = ("channel", "channel(out, weights)", "channel(all)", "channel(all, weights)")
STEPS, STORIES = 60, 8
TRIED = [("l2", way) for way in WAYS] + [("taylor", way) for way in WAYS if "weights" not in way]
"""Taylor's scores add up, so that all weights at once are its members' mean but for a factor."""
BUDGETS = (0.7, 0.5)
READ = 4
LOG = RESULTS / "coupled_channels.runs.jsonl"


@dataclass(frozen=True)
class Case:
    """A network, what it is pruned and trained on, and its figure.

    Attributes:
        name: of the network.
        dense: the trained network of a seed.
        example: an input.
        scored: batches that a criterion may read.
        judge: accuracy in percent, or nats per token.
        train: some training, in place.
        norms: batches for batch norms; None: there are none.
    """

    name: str
    dense: Callable[[int], nn.Module]
    example: Tensor
    scored: list[Any]
    judge: Callable[[nn.Module], float]
    train: Callable[[nn.Module, int], None]
    norms: list[Any] | None


def resnet20(shared: Path) -> Case:
    """The published network, on exact images."""
    test, exact, images = exact_test_images(shared), exact_training_images(shared), recompressed(shared, 10_000)
    dense = ResNet20().eval()
    dense.load_state_dict(load_file(shared / "data" / "resnet20_cifar10" / "resnet20.safetensors"), strict=False)
    return Case(
        "ResNet-20",
        lambda seed: copy.deepcopy(dense),
        test[0][:2],
        batches(exact),
        lambda model: 100 * sc.evaluate(model, test).top1,
        lambda model, seed: train_one_epoch(model, images, seed),
        batches(exact)[:32],
    )


def small_residual(shared: Path) -> Case:
    """A residual network, trained here on 8 x 8 digits; ``shared`` is not read."""
    data = digits()
    pair = (data.x_train, data.y_train)

    def dense(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = Residual()
        sc.fit(
            model,
            pair,
            sc.Training(15, lr=2e-3, lr_schedule="one_cycle", loss=F.cross_entropy, seed=seed),
            progress=False,
        )
        return model.eval()

    def train(model: nn.Module, seed: int) -> None:
        sc.fit(
            model, pair, sc.Training(4, lr=1e-3, lr_schedule="linear", loss=F.cross_entropy, seed=seed), progress=False
        )
        model.eval()

    test = (data.x_test, data.y_test)

    def judge(model: nn.Module) -> float:
        return 100 * sc.evaluate(model, test).top1

    return Case("digits residual", dense, pair[0][:2], batches(pair), judge, train, batches(pair))


def language_model(shared: Path) -> Case:
    """A small decoder of the llama kind, with one stream of 128 channels."""
    data = shared / "data"
    dense = load_decoder(data / "babyllama_tok105")
    texts = stories(data / "text" / "tinystories_2MiB.txt", data / "babyllama_tok105" / "tok105.vocab")
    whole, held_out = torch.stack([text for text in texts[:-200] if len(text) == 257]), texts[-100:]

    def stream(seed: int) -> Iterator[Tensor]:
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
        yield from whole[order[: STEPS * STORIES]].split(STORIES)

    def train(model: nn.Module, seed: int) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
        model.train()
        for ids in stream(seed):
            optimizer.zero_grad()
            F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step()
            schedule.step()
        model.eval()

    scored = [(ids[:, :-1], ids[:, 1:]) for ids in whole[: 16 * READ].split(16)]
    return Case(
        "language model",
        lambda seed: copy.deepcopy(dense),
        scored[0][0][:2],
        scored,
        lambda model: nats(model, held_out),
        train,
        None,
    )


CASES = {"ResNet-20": resnet20, "digits residual": small_residual, "language model": language_model}


def next_token(output: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of classes, or of tokens."""
    return F.cross_entropy(output.flatten(0, -2), labels.flatten())


def one(case: Case, criterion: str, budget: float, way: str, seed: int) -> dict[str, Any]:
    """One network: as pruned, with batch norms again, trained."""
    dense = case.dense(seed)
    needs = {"data": case.scored, "loss": next_token, "batches": READ} if criterion == "taylor" else {}
    exact = case.norms is not None  # a norm over the stream sees fewer values, which changes what stays
    small = sc.shrink(
        dense, example_inputs=case.example, macs=budget, criterion=criterion, unit=way, exact=exact, seed=seed, **needs
    )
    found: dict[str, Any] = {"dense": case.judge(dense), "pruned": case.judge(small), "norms": None}
    if case.norms is not None:
        again = copy.deepcopy(small)
        sc.recalibrate(again, case.norms, batches=len(case.norms))
        found["norms"] = case.judge(again)
    case.train(small, seed)
    if case.norms is not None:
        sc.recalibrate(small, case.norms, batches=len(case.norms))
    return found | {"trained": case.judge(small)}


def table(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A line per network, criterion, budget and way: means over seeds."""
    rows: list[list[Any]] = []
    for key in dict.fromkeys((r["network"], r["criterion"], r["budget"], r["way"]) for r in runs):
        network, criterion, budget, way = key
        same = [r for r in runs if (r["network"], r["criterion"], r["budget"], r["way"]) == key]
        cells = [told([r[name] for r in same]) for name in ("dense", "pruned", "norms", "trained")]
        rows.append([network, criterion, round(100 - 100 * budget), way, *cells])
    machine = environment().to_record()
    return {
        "title": "A coupled channel's score: the mean of its layers, or all of their weights at once",
        "columns": [
            "network",
            "criterion",
            "fewer multiply-adds, %",
            "unit",
            "dense",
            "as pruned",
            "batch norms recalibrated",
            "trained a little",
        ],
        "rows": rows,
        "runs": runs,
        "environment": {key: machine[key] for key in ("cpu", "threads", "torch", "secateur")},
        "note": (
            "Accuracy in percent (ResNet-20: 1,000 exact test images; digits: 360); of the language model nats per "
            "token on 100 held-out stories, where less is better. Mean and standard deviation over "
            f"{len({r['seed'] for r in runs})} seeds. Trained: ResNet-20 one epoch on 10,000 recompressed images, "
            f"digits four epochs, the language model {STEPS} steps of {STORIES} stories."
        ),
    }


def told(values: list[float | None]) -> str | None:
    """Mean and standard deviation."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    spread = f" ± {statistics.stdev(there):.2f}" if len(set(there)) > 1 else ""
    return f"{statistics.mean(there):.2f}{spread}"


def main() -> None:
    """Go on where the last run stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = [json.loads(line) for line in LOG.read_text(encoding="utf-8").splitlines()] if LOG.exists() else []
    done = {(r["network"], r["criterion"], r["budget"], r["way"], r["seed"]) for r in runs}
    for name in options.only:
        case = CASES[name](options.shared)
        for seed in range(options.seeds):
            for key in [(name, c, b, way, seed) for b in BUDGETS for c, way in TRIED]:
                if key in done:
                    continue
                row = dict(zip(("network", "criterion", "budget", "way", "seed"), key, strict=True))
                runs.append(row | one(case, key[1], key[2], key[3], seed))
                print(runs[-1], flush=True)
                with LOG.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    order = list(CASES)
    runs.sort(key=lambda r: (order.index(r["network"]), -r["budget"], r["criterion"], WAYS.index(r["way"]), r["seed"]))
    text = json.dumps(table(runs), indent=1, ensure_ascii=False)
    (RESULTS / "coupled_channels.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
