"""The main job on real data: train, make sparse or smaller five ways, measure, save, load back, report."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from secateur.benchmark.data import Images
from secateur.benchmark.models import LeNet5, Residual
from secateur.benchmark.protocol import (
    REMOVED_FILTERS,
    Outcome,
    Recipe,
    Setting,
    fit,
    run_method,
    steps_per_epoch,
    training_epochs,
)
from secateur.deploy.files import load, save
from secateur.measure import measure
from secateur.model.targets import find_targets
from secateur.records import Record, Report, Shares
from secateur.report.html import to_html
from secateur.report.table import print_table

__all__ = ["DEMO_METHODS", "Network", "demo_networks", "run_demo"]

DEMO_METHODS = {
    "one-shot": "one-shot magnitude",
    "gradual": "gradual magnitude",
    "iterative": "iterative magnitude",
    "SNIP": "SNIP before training",
}
"""Short name, for tables and plots -> method of the protocol."""

_AND_FILTERS = {**DEMO_METHODS, "filters": "filter removal"}


@dataclass(frozen=True)
class Network:
    """A network of the demo: how it is made, how long it is trained, and what is done to it."""

    name: str
    make: Callable[[], nn.Module]
    recipe: Recipe
    methods: Mapping[str, str]


def demo_networks(data: Images, epochs: int | None = None) -> tuple[Network, ...]:
    """The two networks that the demo trains on a data set.

    Args:
        data: decides the input size.
        epochs: of the dense networks; None: 20 on the digits, 3 on larger data.

    Returns:
        ``LeNet``, a LeNet-5-like network, and ``ResNet``, a small residual one of widths 32-64-128.
    """
    epochs = epochs or (20 if data.size < 16 else 3)
    rounds = 3
    recipe = Recipe(epochs=epochs, tuning_epochs=max(rounds, epochs * 3 // 5 // rounds * rounds), rounds=rounds)
    return (
        Network("LeNet", lambda: LeNet5(data.size), recipe, DEMO_METHODS),
        Network("ResNet", Residual, recipe, _AND_FILTERS),
    )


def run_demo(
    data: Images,
    folder: str | Path,
    *,
    sparsity: float = 0.9,
    epochs: int | None = None,
    rounds: int = 30,
    console: Console | None = None,
) -> Report:
    """Train the demo's networks, make each sparse by every method of the demo, and report what came of it.

    Writes ``report.html``, ``report.json`` and one sparse file per network and method into ``folder``; loads one
    of them back into a fresh network and checks that its outputs are the saved network's, bit for bit.

    Args:
        data: images.
        folder: where to; made if missing.
        sparsity: share of target weights to remove.
        epochs: of the dense networks; None: as ``demo_networks`` says.
        rounds: of each latency measurement.
        console: where to print; None: the standard output.

    Returns:
        The report.

    Raises:
        ValueError: if no file got smaller, or the file loaded back does not compute the same.
    """
    console = console or Console()
    threads = torch.get_num_threads()
    if data.size < 16:  # too small for two threads to help, and two threads beside a busy neighbour crawl
        torch.set_num_threads(1)
    try:
        return _run(data, Path(folder), sparsity, epochs, rounds, console)
    finally:
        torch.set_num_threads(threads)


def _run(data: Images, target: Path, sparsity: float, epochs: int | None, rounds: int, console: Console) -> Report:
    target.mkdir(parents=True, exist_ok=True)
    console.print(
        f"[bold]{data.name}[/bold]: {len(data.y_train):,} images to train on, {len(data.y_test):,} to test, "
        f"{data.size}x{data.size} pixels; {100 * sparsity:g} % of the weights go.\n"
        "LeNet is LeNet-5-like, ResNet a small residual network of widths 32-64-128. Each is made sparse by magnitude "
        "once after training, gradually while it trains, in rounds with fine-tuning, and by SNIP before it trains.\n"
        f"From the ResNet, filter removal also takes {100 * REMOVED_FILTERS:g} % of all channels for good."
    )
    records: dict[str, Record] = {}
    masks: dict[str, dict[str, Any]] = {}
    made: list[_Made] = []
    for network in demo_networks(data, epochs):
        for one in _make_sparse(network, data, sparsity, target, console):
            with console.status(f"measuring {one.name}"):
                records[one.name] = _measured(one, data, rounds)
            if one.outcome.masks is not None:
                masks[one.name] = {name: mask.numpy() for name, mask in one.outcome.masks.items()}
            made.append(one)
    report = Report(f"secateur demo on {data.name}", tuple(records), tuple(records.values()))
    (target / "report.json").write_text(json.dumps(report.to_record()), encoding="utf-8")
    page = to_html(report, target / "report.html", masks=masks)
    print_table(report, console=console)
    _check_sizes(report)
    for one in (made[0], made[-1]):  # with masks, and really smaller
        _check_load(one, data, console)
    console.print(f"[bold]{page}[/bold] is the report; the sparse files stand beside it.")
    return report


@dataclass(frozen=True)
class _Made:
    """One sparse network of the demo, the dense one it is held against, and its file."""

    short: str
    network: Network
    dense: nn.Module
    outcome: Outcome
    path: Path

    @property
    def name(self) -> str:
        return f"{self.network.name}, {self.short}"


def _make_sparse(network: Network, data: Images, sparsity: float, target: Path, console: Console) -> Iterator[_Made]:
    """Train one network dense, then make it sparse by every method, and save each."""
    recipe = network.recipe
    torch.manual_seed(recipe.seed)
    fresh = network.make()
    dense = copy.deepcopy(fresh)
    with _bar(console, f"{network.name}, dense", recipe.epochs, data, recipe) as tell:
        fit(dense, data, recipe, epochs=recipe.epochs, lr=recipe.lr, progress=tell)
    for short, method in network.methods.items():
        with _bar(console, f"{network.name}, {method}", training_epochs(method, recipe), data, recipe) as tell:
            outcome = run_method(method, Setting(fresh, dense, data, recipe, sparsity, tell))
        path = target / f"{network.name}-{short}.safetensors".lower()
        save(outcome.model, path, plan=outcome.plan)
        yield _Made(short, network, dense, outcome, path)


def _measured(made: _Made, data: Images, rounds: int) -> Record:
    record = measure(
        made.dense,
        made.outcome.model,
        (data.x_test, data.y_test),
        train=(data.x_train, data.y_train),
        batches=(1, 256),
        rounds=rounds,
        plan=made.outcome.plan,
        training=made.outcome.cost,
        schedule=made.outcome.history,
    )
    dense, sparse = replace(record.dense, name=made.network.name), replace(record.sparse, name=made.short)
    shares = record.shares if made.outcome.masks is not None else _removed(made)
    return replace(record, dense=dense, sparse=sparse, shares=shares)


def _removed(made: _Made) -> Shares:
    """What is gone from a network that is really smaller: of its units, target weights and parameters."""
    before, after = (
        (sum(math.prod(key.shape) for key in find_targets(net).values()), sum(p.numel() for p in net.parameters()))
        for net in (made.dense, made.outcome.model)
    )
    return Shares(made.outcome.history[-1].sparsity, 1 - after[0] / before[0], 1 - after[1] / before[1])


@contextmanager
def _bar(console: Console, title: str, epochs: int, data: Images, recipe: Recipe) -> Iterator[Callable[..., None]]:
    """A progress bar of optimizer steps; one line per run where the output is no terminal."""
    total = epochs * steps_per_epoch(data, recipe)
    columns = (TextColumn("{task.description:46}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=max(total, 1))
        yield lambda steps=1: progress.advance(task, steps)
        progress.update(task, completed=max(total, 1))


def _check_sizes(report: Report) -> None:
    """The promise of the demo: at least the file is really smaller."""
    for name, record in zip(report.names, report.records, strict=True):
        if record.sparse.sizes.file_bytes >= record.dense.sizes.plain_bytes:
            raise ValueError(
                f"{name}: the sparse file has {record.sparse.sizes.file_bytes} bytes, not fewer than dense"
            )


def _check_load(made: _Made, data: Images, console: Console) -> None:
    again = load(made.path, into=made.network.make)
    again.eval()
    with torch.no_grad():
        same = torch.equal(again(data.x_test), made.outcome.model(data.x_test))
    if not same:
        raise ValueError(f"{made.path} was loaded back, but its outputs differ from the saved network's")
    size = made.path.stat().st_size
    console.print(f"{made.path.name} ({size:,} bytes) loaded back: outputs equal, bit for bit.")
