"""What masks cost: one pass over many weights, a training step of a large network, steps of small networks.

    python benchmarks/masking.py                 # writes benchmarks/results/masking.json, about two minutes
    python benchmarks/masking.py --blocks 5      # a quick look

One thread. Blocks of what is compared alternate in random order, so that the machine's mood hits all alike; figures
are medians over blocks, and ``dense again`` is the same dense block a second time: a difference within its spread is
none. CPU time of the process, not the wall clock: other programs may run beside.

The masks are random or of magnitude on untrained networks (synthetic): their place does not change the cost.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.benchmark.models import LeNet5, Residual, lenet_300_100
from secateur.measure.environment import environment
from secateur.native import MaskSet, pack_bits

__all__ = ["main"]

RESULT = Path(__file__).parent / "results" / "masking.json"
WEIGHTS = 1 << 24
SPARSITY = 0.9
Row = list[Any]


def interleaved(blocks: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """One number per block and round; the order within a round is drawn anew."""
    order = list(blocks)
    draw = random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in blocks}
    for block in blocks.values():
        block()
    for _ in range(rounds):
        draw.shuffle(order)
        for name in order:
            taken[name].append(blocks[name]())
    return taken


def cpu_ms(work: Callable[[], object], repeat: int = 1) -> float:
    start = time.process_time()
    for _ in range(repeat):
        work()
    return (time.process_time() - start) * 1e3 / repeat


def spread(ratios: list[float]) -> str:
    """The 10 and 90 per cent quantiles."""
    ordered = sorted(ratios)
    return f"{ordered[len(ordered) // 10]:.3f} to {ordered[-1 - len(ordered) // 10]:.3f}"


def row(what: str, taken: dict[str, list[float]], ours: str, limit: str) -> Row:
    dense, again = taken["dense"], taken["dense again"]
    return [
        what,
        median(dense),
        median(taken[ours]),
        median(taken[ours]) / median(dense),
        limit,
        median(again) / median(dense),
        spread([b / a for a, b in zip(dense, again, strict=True)]),
    ]


def one_pass(rounds: int) -> list[Row]:
    """Masking 16.8 M float32 weights against the cheapest pass that torch has, ``w.mul_(1.0)``."""
    weight, source = torch.empty(WEIGHTS), torch.randn(WEIGHTS)
    table = MaskSet([pack_bits(torch.rand(WEIGHTS) >= SPARSITY)], [(WEIGHTS,)])

    def dense() -> float:
        weight.copy_(source)
        return cpu_ms(lambda: weight.mul_(1.0))

    def dirty() -> float:  # refilled, so that every weight is there to be removed; the refill is not counted
        weight.copy_(source)
        return cpu_ms(lambda: table.apply([weight]))

    def clean() -> float:
        weight.copy_(source)
        table.apply([weight])
        return cpu_ms(lambda: table.apply([weight]))

    taken = interleaved({"dense": dense, "dirty": dirty, "clean": clean, "dense again": dense}, rounds)
    what = f"{WEIGHTS / 1e6:.1f} M float32, {SPARSITY:.0%} random, against w.mul_(1.0)"
    return [
        row(f"{what}: removed weights refilled", taken, "dirty", "<= 1.3"),
        row(f"{what}: clean already", taken, "clean", "<= 1.3"),
    ]


def perceptron() -> nn.Sequential:
    layers = [module for _ in range(4) for module in (nn.Linear(1024, 1024), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-4),
    "Adam, fused=True": lambda parameters: torch.optim.Adam(parameters, lr=1e-4, fused=True),
}


def trainer(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, loss: Callable[[Tensor], Tensor]
) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()

    return step


def training_steps(rounds: int) -> list[Row]:
    """Forward, backward and update of a 4x1024 perceptron, with and without masks on gradients and weights."""
    rows: list[Row] = []
    x, y = torch.randn(256, 1024), torch.randn(256, 1024)  # nothing to learn: gradients never fade into denormals
    for name, make in OPTIMIZERS.items():
        steps: dict[str, Callable[[], float]] = {}
        for variant in ("dense", "masked", "dense again"):
            torch.manual_seed(0)
            model = perceptron()
            optimizer = make(model.parameters())
            if variant == "masked":
                sc.prune(model, sparsity=SPARSITY, undo=False).attach(optimizer)
            step = trainer(model, optimizer, x, lambda output: F.mse_loss(output, y))
            steps[variant] = lambda step=step: cpu_ms(step, repeat=5)
        taken = interleaved(steps, rounds)
        rows.append(row(f"training step, 4x1024 perceptron, batch 256, {name}", taken, "masked", "<= 1.03"))
    return rows


def attach_bare(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The two calls alone, on tensors looked up once: what is left of ``masks.attach`` without its safety."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    table = MaskSet([pack_bits(torch.rand(p.shape) >= SPARSITY) for p in weights], [p.shape for p in weights])
    optimizer.register_step_pre_hook(lambda *_: table.apply([p.grad for p in weights]))
    optimizer.register_step_post_hook(lambda *_: table.apply(weights))


def attach_masks(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    sc.prune(model, sparsity=SPARSITY, undo=False).attach(optimizer)


def hooks_us(
    model: nn.Module, x: Tensor, attach: Callable[[nn.Module, torch.optim.Optimizer], None], rounds: int
) -> tuple[float, str]:
    """Microseconds per training step that all mask hooks take together, inside real steps (caches as they are)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    marks: list[int] = []

    def mark(*_: object) -> None:
        marks.append(time.perf_counter_ns())

    optimizer.register_step_pre_hook(mark)
    optimizer.register_step_post_hook(mark)
    attach(model, optimizer)
    optimizer.register_step_pre_hook(mark)
    optimizer.register_step_post_hook(mark)
    y = torch.randint(0, 10, (len(x),))
    step = trainer(model, optimizer, x, lambda output: F.cross_entropy(output, y))
    blocks: list[float] = []
    for _ in range(rounds):
        taken: list[float] = []
        for _ in range(20):
            marks.clear()
            step()
            before, gradients, after, weights = marks
            taken.append((gradients - before + weights - after) / 1e3)
        blocks.append(median(taken))
    ordered = sorted(blocks)
    return median(blocks), f"{ordered[rounds // 10]:.1f} to {ordered[-1 - rounds // 10]:.1f}"


def small_networks(rounds: int) -> dict[str, dict[str, Any]]:
    torch.manual_seed(0)
    networks: dict[str, tuple[nn.Module, Tensor]] = {
        "LeNet-300-100": (lenet_300_100(64), torch.randn(32, 64)),
        "LeNet-5": (LeNet5(size=8), torch.randn(32, 1, 8, 8)),
        "residual 32-64-128": (Residual(), torch.randn(32, 1, 8, 8)),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, (model, x) in networks.items():
        calls, calls_spread = hooks_us(copy.deepcopy(model), x, attach_bare, rounds)
        hooks, hooks_spread = hooks_us(model, x, attach_masks, rounds)
        found[name] = {
            "tensors": sum(p.dim() > 1 for p in model.parameters()),
            "parameters": sum(p.numel() for p in model.parameters()),
            "calls_us": calls,
            "calls_spread_us": calls_spread,
            "hooks_us": hooks,
            "hooks_spread_us": hooks_spread,
            "goal_us": 60,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=30, help="interleaved blocks per comparison (default 30)")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = one_pass(options.blocks) + training_steps(options.blocks)
    small = small_networks(options.blocks)
    steps = "; ".join(
        f"{name} ({case['tensors']} tensors, {case['parameters']:,} parameters) "
        f"{case['calls_us']:.0f}, with all of masks.attach {case['hooks_us']:.0f}"
        for name, case in small.items()
    )
    result = {
        "title": "What masks cost, one thread",
        "columns": ["", "dense, ms", "with masks, ms", "ratio", "goal", "dense again / dense", "its 10 to 90 % spread"],
        "rows": rows,
        "small_networks": small,
        "blocks": options.blocks,
        "environment": asdict(environment()),
        "note": f"Medians of {options.blocks} interleaved blocks, CPU time; masks synthetic. "
        "Adam without fused=True pays for the zeros themselves, however they come: the second moments of removed "
        "weights are zero, and torch.sqrt takes five times as long on zeros here. "
        f"Microseconds per training step for masking gradients and weights (goal 60): {steps}.",
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
