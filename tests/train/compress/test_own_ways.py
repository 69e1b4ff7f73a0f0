"""What users bring of their own: metrics of any scale and name, methods, loaders, inits; and their slips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset, TensorDataset

import secateur as sc
from secateur.records import Score
from secateur.train.compress import Compressed, Goal, Stage, compress
from secateur.train.compress.goal import Limits
from secateur.train.compress.identity import data_text, same_data
from secateur.train.compress.page import in_digits
from secateur.train.loop.training import Training
from tests.train.compress.nets import digits, no_clock, recovery, trained_mlp, trial


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    no_clock(monkeypatch)


def run(model: nn.Module, goal: Goal, **choices: Any) -> Compressed:
    own: dict[str, Any] = {"recovery": recovery, "progress": False, "trials": 1, "rivals": False} | choices
    parts = [own.pop(name, getattr(digits(), name)) for name in ("train", "valid", "test")]
    return compress(model, *parts, goal=goal, **own)


def loader(pair: tuple[Tensor, Tensor], batch_size: int = 100, *, shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*pair), batch_size=batch_size, shuffle=shuffle)


class Named(nn.Module):
    """A model with a method of its own, which a metric may call."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained_mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def classes(self, x: Tensor) -> Tensor:
        return self(x).argmax(1)


def accuracy(model: nn.Module, batches: Any) -> float:
    """As a share of 1, of batches that only this understands, under a name like the default's."""
    found = [model.classes(batch["x"]) == batch["y"] for batch in batches]  # type: ignore[operator]
    return float(torch.cat(found).double().mean())


def as_mappings() -> dict[str, Any]:
    parts = {name: getattr(digits(), name) for name in ("train", "valid", "test")}
    own: dict[str, Any] = {name: [{"x": x, "y": y}] for name, (x, y) in parts.items()}
    step = Training(1, lr=2e-3, step=lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"]))
    return own | {"recovery": step, "example_inputs": digits().valid[0][:2], "metric": accuracy}


def test_a_metric_of_ones_own_may_call_the_model_and_be_called_accuracy(tmp_path: Path) -> None:
    result = run(Named(), Goal(max_drop=0.05, params=0.6), rivals=True, **as_mappings())
    record = result.record
    half, chosen = record.rivals[0].trial, record.point(record.chosen)
    assert half is not None
    assert half.told.value == pytest.approx(record.dense.valid.value, abs=0.1)
    assert chosen.told.value == pytest.approx(accuracy(result.model, as_mappings()["test"]))
    assert f"{chosen.told.value:.4f}" in str(result)  # two decimals of a share of 1 would say little
    html = result.report.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"accuracy on test {record.dense.valid.value:.1f}"[:-2] in html
    assert f"{chosen.told.value:.4f}" in html


def test_batches_of_another_shape_say_which_argument_helps() -> None:
    own = as_mappings()
    with pytest.raises(ValueError, match=r"valid: a batch is a dict.* give metric="):
        run(Named(), Goal(params=0.6), **(own | {"metric": None}))
    x, y = digits().valid
    with pytest.raises(ValueError, match=r"a batch is a tuple of 3.* give example_inputs="):
        run(trained_mlp(), Goal(params=0.6), valid=[(x, x, y)], metric=lambda model, data: 1.0)


def test_points_as_large_as_the_metric_are_remarked() -> None:
    lines: list[str] = []
    text = str(run(Named(), Goal(max_drop=1.0, params=0.6), progress=lines.append, **as_mappings()))
    assert "max_drop=1 allows as much as all of the metric" in text
    assert any("max_drop=1 allows" in line for line in lines)
    assert "allows as much" not in str(run(Named(), Goal(max_drop=0.05, params=0.6), **as_mappings()))


def test_a_small_metric_counts_as_much_as_a_large_one_for_what_is_nearest() -> None:
    limits = Limits(0.01, None, {"bytes": 1000})
    lost = trial(value=0.4, drop=0.5, bytes=1000)
    large = trial(value=0.895, drop=0.005, bytes=1500)
    assert sum(limits.misses(lost).values()) > sum(limits.misses(large).values())
    per_cent = Limits(1.0, None, {"bytes": 1000})
    assert per_cent.misses(trial(value=40.0, drop=50.0))["max_drop"] == pytest.approx(limits.misses(lost)["max_drop"])
    assert limits.told(trial(value=0.8877, drop=0.0123)) == ("0.0123 points lost on valid, 0.01 allowed",)
    assert Limits(0.0, None, {}).misses(trial(value=-0.5, drop=0.5))["max_drop"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("value", "score", "shown"),
    [
        (-0.004, Score("valid", 90.0, 0.0), "+0.00"),
        (-0.004, Score("valid", 0.9, 0.004), "-0.0040"),
        (-30.0, Score("valid", 5.0, 30.0), "-30.00"),
        (-0.31, Score("valid", -0.31, 0.1), "-0.3100"),
    ],
)
def test_digits_follow_the_scale_of_the_metric(value: float, score: Score, shown: str) -> None:
    assert in_digits(value, score, signed=True) == shown


def test_patience_and_roads_without_training_have_an_estimate() -> None:
    lines: list[str] = []
    patient = replace(recovery, epochs=3, patience=1)
    assert run(trained_mlp(), Goal(params=0.5), recovery=patient, progress=lines.append).met
    assert any("points x 30 steps" in line for line in lines)
    result = run(trained_mlp(), Goal(params=0.5), recovery=None, stages=[Stage(epochs=0)], progress=lines.append)
    assert result.met
    assert result.record.points[0].epochs == 0
    assert any("without training" in line for line in lines)


def test_sizes_that_are_met_exactly_are_met() -> None:
    """Two widths are left, and the narrower one is what was asked for: nothing may be said of it being out of reach."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    result = run(net, Goal(macs=0.5), stages=[Stage(unit="channel", round_to=16)])
    chosen = result.record.point(result.record.chosen)
    assert result.met
    assert chosen.macs * 2 == result.record.dense.macs
    assert result.record.notes == ()


def test_the_narrower_rival_and_the_page_have_the_bytes_of_real_files(tmp_path: Path) -> None:
    result = run(trained_mlp(), Goal(bytes=0.4), rivals=True)
    record, report = result.record, result.report
    chosen, narrower = record.point(record.chosen), record.rivals[1].trial
    assert narrower is not None
    assert narrower.bytes <= chosen.bytes
    assert "equal bytes" in record.rivals[1].note
    written = sc.save(result.model, tmp_path / "small.safetensors")
    measured = {name: found.sparse for name, found in zip(report.names, report.records, strict=True)}
    assert measured["chosen"].sizes.file_bytes == written == chosen.bytes
    assert measured["narrower"].sizes.file_bytes == narrower.bytes
    assert [each.name for each in measured["bfloat16"].layers] == [each.name for each in report.records[0].dense.layers]
    assert "at most a file of" in report.title


def test_nothing_of_a_loader_changes_also_behind_its_batch_sampler() -> None:
    order, data = torch.Generator().manual_seed(5), TensorDataset(*digits().train)
    train = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data, generator=order), 64, drop_last=False))
    before = order.get_state()
    run(trained_mlp(), Goal(macs=0.6), train=train, stages=[Stage(unit="channel", criterion="taylor")])
    assert torch.equal(before, order.get_state())


def test_the_same_data_is_seen_in_every_dress() -> None:
    x, y = digits().valid
    pairs: list[tuple[Any, Any]] = [
        ((x, y), (x.clone(), y)),
        ([(x, y)], [(x.clone(), y.clone())]),
        ({"x": x, "y": y}, {"x": x.clone(), "y": y}),
        (loader((x, y)), loader((x, y), batch_size=7, shuffle=True)),
        (loader((x, y)).dataset, TensorDataset(x, y)),
    ]
    assert all(same_data(one, other) for one, other in pairs)
    whole = TensorDataset(x, y)
    others: list[tuple[Any, Any]] = [
        ((x, y), (x + 1, y)),
        ([(x, y)], [(x, y), (x, y)]),
        ([], []),
        ({"x": x}, {"x": x + 1}),
        (DataLoader(Subset(whole, range(10))), DataLoader(Subset(whole, range(10, 20)))),
        (DataLoader(whole, sampler=[1, 2]), DataLoader(whole, sampler=[3, 4])),
        (DataLoader(whole, sampler=RandomSampler(whole, num_samples=5)), DataLoader(whole)),
    ]
    assert not any(same_data(one, other) for one, other in others)
    with pytest.raises(ValueError, match="valid and test are the same data"):
        run(trained_mlp(), Goal(params=0.5), valid=loader((x, y)), test=loader((x, y)))


def test_data_is_told_apart_by_what_can_be_seen() -> None:
    x, y = digits().valid
    assert data_text((x, y)) == data_text((x.clone(), y))
    for one, other in (
        (loader((x, y)), loader((x + 1, y))),
        (loader((x, y)), loader((x, y), batch_size=7)),
        ({"x": x}, {"x": x + 1}),
        ([{"x": x}], [{"x": x + 1}]),
        (DataLoader(Subset(TensorDataset(x), [0, 1])), DataLoader(Subset(TensorDataset(x), [0, 2]))),
    ):
        assert data_text(one) != data_text(other)


def test_a_folder_is_of_one_init_and_of_one_example(tmp_path: Path) -> None:
    def ones(model: nn.Module) -> None:
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.1)

    def run_with(**choices: Any) -> None:
        run(trained_mlp(), Goal(params=0.5), stages=[Stage("before")], folder=tmp_path, **choices)

    run_with(init=ones)
    run_with(init=ones)
    weights = trained_mlp().state_dict()
    for other in ({}, {"init": weights}, {"init": nn.Module.zero_grad}):
        with pytest.raises(ValueError, match="differs in init"):
            run_with(**other)
    with pytest.raises(ValueError, match="differs in example_inputs"):
        run_with(init=ones, example_inputs=digits().valid[0][:5])


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"rivals": True, "rival_epochs": 0}, "rival_epochs=0: a whole number from 1"),
        ({"train": (*digits().train, digits().train[1])}, "train is a tuple of 3 tensors"),
    ],
)
def test_slips_are_told_before_anything_is_trained(choices: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        run(trained_mlp(), Goal(params=0.5), **choices)


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "below"):
        with pytest.raises(ValueError, match=r"notes\.txt.*: it is, or lies in, a file"):
            run(trained_mlp(), Goal(params=0.5), folder=folder)
    assert (tmp_path / "notes.txt").read_text() == "mine"
