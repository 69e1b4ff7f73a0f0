"""Entering, leaving, watching and rewinding a training; loaders of every kind."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from secateur.train import prune
from secateur.train.loop.feed import steps_per_epoch
from secateur.train.loop.fit import fit
from secateur.train.loop.fitted import Moment
from secateur.train.loop.snapshot import Snapshot
from secateur.train.loop.training import Training

X = torch.randn(22, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(22) % 3
DATA = (X, Y)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3))


def state(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().float() for value in model.state_dict().values()])


def training(epochs: int = 3, **options: Any) -> Training:
    return Training(epochs, **{"optimizer": "adam", "lr": 0.01, "batch_size": 8, "loss": F.cross_entropy, **options})


@pytest.mark.parametrize("k", [0, 3, 4, 8])
def test_from_a_snapshot_a_training_goes_on_as_it_did(k: int, tmp_path: Path):
    whole, again = net(), net()
    plan = training(lr_schedule=lambda o, total: torch.optim.lr_scheduler.OneCycleLR(o, 0.02, total_steps=total))
    fitted = fit(whole, DATA, plan, keep=(k,))
    fitted.snapshots[k].save(tmp_path / "k.pt")
    with torch.no_grad():
        again[0].weight.fill_(7)
    for _ in range(2):  # a snapshot is not used up
        snapshot = Snapshot.load(tmp_path / "k.pt")
        rest = fit(again, DATA, plan, start=k, snapshot=snapshot)
        assert torch.equal(state(again), state(whole))
        assert rest.steps == 9 - k
        fit(again, DATA, plan, start=k, snapshot=fitted.snapshots[k])
        assert torch.equal(state(again), state(whole))


def test_a_training_in_two_parts_is_the_training():
    whole, parts = net(), net()
    fit(whole, DATA, training())
    first = fit(parts, DATA, training(), stop=4, keep=(4,))
    assert (first.steps, len(first.history)) == (4, 1)
    second = fit(parts, DATA, training(), start=4, snapshot=first.snapshots[4])
    assert torch.equal(state(parts), state(whole))
    assert [(row.epoch, row.step) for row in (*first.history, *second.history)] == [(1, 3), (2, 6), (3, 9)]
    nothing = fit(parts, DATA, training(), start=9)
    assert (nothing.steps, nothing.history) == (0, ())
    assert torch.equal(state(parts), state(whole))


def test_a_snapshot_brings_weights_and_statistics_and_the_masks_stay():
    model = net()
    early = fit(model, DATA, training(), keep=(1,)).snapshots[1]
    masks = prune(model, 0.5)
    fit(model, DATA, training(), start=1, stop=1, snapshot=early)
    masks.check()
    for name, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        expected = early.model[name] * masks[name] if name in masks else early.model[name]
        assert torch.equal(value, expected), name
    fit(model, DATA, training(), start=1, snapshot=early)
    masks.check()


def test_moments_and_history_tell_the_same():
    moments: list[Moment] = []
    scores = iter([10.0, 30.0, 20.0])
    model = net()
    fitted = fit(
        model,
        DATA,
        training(lr_schedule="linear"),
        valid="anything",
        metric=lambda m, valid: next(scores) if valid == "anything" and not m.training else -1.0,
        callbacks=[moments.append],
    )
    assert [(m.at, m.step, m.epoch) for m in moments[:5]] == [
        ("step", 1, 0), ("step", 2, 0), ("step", 3, 0), ("epoch", 3, 1), ("step", 4, 1),
    ]  # fmt: skip
    epochs = [m for m in moments if m.at == "epoch"]
    assert [row.metric for row in fitted.history] == [m.metric for m in epochs] == [10.0, 30.0, 20.0]
    for row, moment in zip(fitted.history, epochs, strict=True):
        steps = [m for m in moments if m.at == "step" and m.epoch == row.epoch - 1]
        assert row.loss == moment.loss == pytest.approx(sum(m.loss for m in steps) / 3)
        assert row.lr == moment.lr == steps[-1].lr
    assert all(m.model is model for m in moments)
    assert fitted.cost.wall_s >= sum(row.seconds for row in fitted.history) > 0
    text = str(fitted)
    assert "metric" in text
    assert "30.0" in text
    assert "9 steps in" in text


@pytest.mark.parametrize(
    ("scores", "patience", "epochs"), [([1, 2, 2, 1, 5], 2, 4), ([3, 2, 4, 3, 5], 2, 5), ([1, float("nan"), 0], 1, 2)]
)
def test_early_stopping(scores: list[float], patience: int, epochs: int):
    found = iter(scores)
    fitted = fit(net(), DATA, training(5, patience=patience), valid=0, metric=lambda *_: next(found))
    assert len(fitted.history) == epochs
    assert fitted.stopped_early == (epochs < 5)


def test_progress_goes_to_a_function_a_terminal_or_nowhere(monkeypatch: pytest.MonkeyPatch):
    told: list[int] = []
    fit(net(), DATA, training(), progress=lambda steps=1: told.append(steps))
    assert told == [1] * 9
    written = io.StringIO()
    written.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", written)
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=written, force_terminal=True, width=90))
    fit(net(), DATA, training(), progress=False)
    assert written.getvalue() == ""
    fit(net(), DATA, training(), start=3)
    assert "6/6" in written.getvalue()


class _Shaken(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index] + torch.randn(6), Y[index]


@pytest.mark.parametrize("generator", [None, 4])
def test_a_shuffled_loader_gives_the_same_batches_wherever_a_run_begins(generator: int | None):
    def run(start: int, dropout: float) -> list[Tensor]:
        seen: list[Tensor] = []

        def step(model: nn.Module, batch: Any) -> Tensor:
            seen.append(batch[0])
            return F.cross_entropy(F.dropout(model(batch[0]), dropout), batch[1])

        loader = DataLoader(_Shaken(), batch_size=8, shuffle=True, generator=own)
        fit(nn.Linear(6, 3), loader, training(loss=None, step=step), start=start)
        return seen

    own = None if generator is None else torch.Generator().manual_seed(generator)
    before = None if own is None else own.get_state()
    whole = run(0, 0.5)
    assert len({float(batch.sum()) for batch in whole}) == 9
    for start, dropout in ((0, 0.0), (4, 0.5), (6, 0.1)):
        assert all(torch.equal(a, b) for a, b in zip(run(start, dropout), whole[start:], strict=True))
    assert own is None or torch.equal(own.get_state(), before)  # type: ignore[arg-type]


def test_samplers_are_told_the_epoch():
    sampler = DistributedSampler(TensorDataset(X, Y), num_replicas=1, rank=0)
    loader = DataLoader(TensorDataset(X, Y), sampler=sampler, batch_size=8)
    told: list[int] = []
    tell = sampler.set_epoch
    sampler.set_epoch = lambda epoch: (told.append(epoch), tell(epoch))[1]  # type: ignore[method-assign]
    fit(net(), loader, training(), start=3)
    assert told == [1, 2]


class _Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


def test_a_loader_without_length_is_counted_as_it_goes():
    stream = DataLoader(_Stream(), batch_size=8)
    fitted = fit(net(), stream, training(2, accumulate=2))
    assert [row.step for row in fitted.history] == [2, 4]
    assert fit(net(), stream, training(2), stop=4).steps == 4
    for options, message in (
        ({"training": training(2, lr_schedule="cosine")}, "no len.*lr_schedule='constant'"),
        ({"training": training(2), "start": 1}, "not known where"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(net(), stream, **options)
    with pytest.raises(ValueError, match="steps per epoch are not known"):
        steps_per_epoch(stream, training())


class _Boastful(list[Any]):
    def __len__(self) -> int:
        return 5


def test_a_loader_that_gives_another_number_of_batches_than_it_says():
    with pytest.raises(ValueError, match=r"gave 2 batches in epoch 0, and its len\(\) is 5"):
        fit(net(), _Boastful([DATA, DATA]), training())
    with pytest.raises(ValueError, match="gave 0 batches"):
        fit(net(), [], training())


def test_steps_are_counted_before_training():
    assert steps_per_epoch(DATA, training()) == 3
    assert steps_per_epoch(DATA, training(accumulate=2)) == 2
    assert steps_per_epoch(DataLoader(TensorDataset(X, Y), batch_size=5, drop_last=True), training()) == 4
    assert steps_per_epoch({"a": X, "b": Y}, training(batch_size=22)) == 1
