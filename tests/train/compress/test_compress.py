"""The whole road on a few digits: what comes out is what was measured, and nothing of the user's is touched."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc
from secateur.measure.count import count
from secateur.records import Report, Trials
from secateur.train.compress import Compressed, Goal, Stage, compress
from secateur.train.compress.page import page
from secateur.train.compress.rivals import in_bfloat16
from secateur.train.loop.training import Training
from tests.train.compress.nets import digits, no_clock, recovery, state, trained_mlp


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    no_clock(monkeypatch)


def run(model: nn.Module, goal: Goal, **choices: Any) -> Compressed:
    own: dict[str, Any] = {"recovery": recovery, "progress": False, "trials": 3, "rivals": False} | choices
    test = own.pop("test", digits().test)
    return compress(model, digits().train, digits().valid, test, goal=goal, **own)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_smaller_file_is_the_file_that_was_measured(tmp_path: Path) -> None:
    model = trained_mlp().train()
    before, rng = state(model), torch.get_rng_state()
    result = run(model, Goal(bytes=0.25), rivals=True)
    record, chosen = result.record, result.record.point(result.record.chosen)
    assert result.met
    assert sc.save(result.model, tmp_path / "small.safetensors") == chosen.bytes <= 0.25 * record.dense.bytes
    again = sc.load(tmp_path / "small.safetensors", into=trained_mlp())
    x, y = digits().test
    assert torch.equal(again(x), result.model(x))
    right = 100 * float((result.model(x).argmax(1) == y).double().mean())
    assert chosen.told.split == "test"
    assert chosen.told.value == pytest.approx(right)
    assert chosen.params == sum(int((p != 0).sum()) for p in result.model.parameters())
    # The least strength that does: what is kept is within a grid place and the margin of what was allowed.
    assert chosen.bytes > 0.25 * record.dense.bytes * 0.94
    assert len(record.points) == 2
    assert {rival.name for rival in record.rivals if rival.trial} == {"bfloat16", "narrower"}
    assert same(before, state(model))
    assert model.training
    assert torch.equal(rng, torch.get_rng_state())
    assert sc.find_masks(model) is None
    assert all(p.grad is None for p in model.parameters())


def test_a_speedup_takes_channels_out_and_the_report_has_all_of_it(tmp_path: Path) -> None:
    result = run(trained_mlp(), Goal(max_drop=20.0, speedup=2.0), rivals=True, trials=3)
    record, chosen = result.record, result.record.point(result.record.chosen)
    assert chosen.speedup >= 2.0
    assert chosen.valid.drop <= 20.0
    assert result.met
    assert sc.find_masks(result.model) is None
    assert count(result.model, digits().valid[0][:1]).macs == chosen.macs <= record.dense.macs / 2
    assert chosen.macs == min(point.macs for point in record.points if not _misses(record, point.key))
    narrower = record.rivals[1].trial
    assert narrower is not None
    assert narrower.macs <= chosen.macs
    report = result.report
    assert isinstance(report, Report)
    assert report.names[:3] == ("chosen", "bfloat16", "narrower")
    assert all(found.dense.parameters == record.dense.params for found in report.records)
    html = report.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "narrower" in html
    assert Trials.from_record(json.loads(json.dumps(record.to_record()))) == record


def _misses(record: Trials, key: str) -> bool:
    point = record.point(key)
    return point.speedup < record.goal["speedup"] or point.valid.drop > record.goal["max_drop"]


def test_of_those_that_meet_it_the_smallest_is_chosen_on_valid() -> None:
    result = run(trained_mlp(), Goal(max_drop=2.0), trials=6)
    record = result.record
    good = [point for point in record.points if point.valid.drop <= 2.0]
    assert result.met
    assert record.chosen == min(good, key=lambda point: point.bytes).key
    assert len(good) < len(record.points) == 6
    assert result.frontier[0].valid.value == max(point.valid.value for point in result.frontier)
    text = str(result)
    assert text.startswith("goal: at most 2 points lost: met")
    for words in (
        "accuracy, %",
        "on test, chosen on valid",
        "your model",
        "frontier:",
        "nothing was written",
        "chosen: ",
    ):
        assert words in text


def test_a_goal_that_nothing_meets_gives_the_nearest_and_the_frontier() -> None:
    result = run(trained_mlp(), Goal(max_drop=0.5, bytes=0.03), trials=4, test=None)
    assert not result.met
    assert result.frontier
    text = str(result)
    assert "NOT MET by any of 4 points; the nearest misses:" in text
    assert "flatter" in text  # without test the figures are those of the search
    assert result.record.split == "valid"
    # What is too much at the size asked for is searched below it, for the frontier.
    assert min(point.strength for point in result.record.points) < max(p.strength for p in result.record.points)


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"test": digits().valid}, "valid and test are the same data"),
        ({"trials": 0}, "trials=0: a whole number from 1"),
        ({"search": "grid"}, "bisect"),
        ({"metric": lambda model, data: float("nan")}, "is nan; it has to be a finite number"),
        ({"metric": lambda model, data: "good"}, "it has to return one number"),
        ({"recovery": Training(1), "loss": None}, "loss= is needed"),
        ({"recovery": recovery, "loss": F.nll_loss}, "give it once"),
        ({"stages": [Stage(), Stage(unit="channel")]}, "before the masks"),
    ],
)
def test_mistakes_are_told_and_the_model_is_as_it_was(choices: dict[str, Any], why: str) -> None:
    model = trained_mlp()
    before = state(model)
    with pytest.raises(ValueError, match=why):
        run(model, Goal(bytes=0.25), **choices)
    assert same(before, state(model))
    assert model.training


def test_data_that_cannot_serve_is_refused() -> None:
    model, data, goal = trained_mlp(), digits(), Goal(bytes=0.5)
    for train, valid, why in (
        (None, data.valid, "train= is missing"),
        (data.train, None, "valid= is missing"),
        (data.train, (data.train[0], data.train[1]), "train and valid are the same data"),
        (iter([data.train]), data.valid, "train is an iterator"),
    ):
        with pytest.raises(ValueError, match=why):
            compress(model, train, valid, goal=goal, recovery=recovery, progress=False)
    with pytest.raises(ValueError, match="give a Goal"):
        compress(model, data.train, data.valid, goal=0.5, progress=False)  # type: ignore[arg-type]
    pruned = copy.deepcopy(model)
    sc.prune(pruned, 0.5)
    with pytest.raises(ValueError, match="begins with a dense model"):
        run(pruned, goal)


def test_where_no_channel_can_go_the_reason_is_told() -> None:
    with pytest.raises(ValueError, match=r"nothing to try: channels, global: .*it is an output of the model"):
        run(nn.Sequential(nn.Linear(64, 10)), Goal(macs=0.5))


def test_the_users_own_metric_is_searched_on_and_told() -> None:
    def minus_loss(model: nn.Module, data: Any) -> float:
        assert not model.training
        return -float(F.cross_entropy(model(data[0]), data[1]).detach())

    result = run(trained_mlp(), Goal(params=0.5), metric=minus_loss, trials=1)
    point = result.record.point(result.record.chosen)
    assert result.record.metric == "minus_loss"
    assert point.valid.value == pytest.approx(minus_loss(result.model, digits().valid))
    assert point.valid.standard_error is None
    assert point.valid.drop == pytest.approx(result.record.dense.valid.value - point.valid.value)


def test_progress_tells_the_cost_before_and_every_point() -> None:
    lines: list[str] = []
    run(trained_mlp(), Goal(bytes=0.25), progress=lines.append, trials=2)
    assert any("untrained candidates" in line for line in lines)
    assert any(line.startswith("at most 2 points x 10 steps x") for line in lines)
    assert sum(" on valid (" in line for line in lines) == 2
    assert lines[-1] == "goal met"


def test_without_a_recovery_the_default_is_named() -> None:
    result = run(trained_mlp(), Goal(params=0.5), recovery=None, loss=F.cross_entropy, trials=1)
    assert result.record.point(result.record.chosen).epochs == 3
    assert "recovery: 3 epochs of adam" in str(result)


def test_a_loader_is_read_in_its_own_order_and_left_as_it_was() -> None:
    data = digits()
    order = torch.Generator().manual_seed(7)
    loader = DataLoader(TensorDataset(*data.train), batch_size=64, shuffle=True, generator=order)
    valid = DataLoader(TensorDataset(*data.valid), batch_size=100)
    before = order.get_state()
    choices: dict[str, Any] = {"recovery": recovery, "trials": 1, "rivals": False, "progress": False}
    one = compress(trained_mlp(), loader, valid, goal=Goal(params=0.5), **choices)
    assert torch.equal(before, order.get_state())
    two = compress(trained_mlp(), loader, valid, goal=Goal(params=0.5), **choices)
    assert same(one.model.state_dict(), two.model.state_dict())


def test_mappings_say_what_is_missing() -> None:
    x, y = digits().train
    with pytest.raises(ValueError, match=r"give example_inputs="):
        compress(trained_mlp(), [{"x": x, "y": y}], [{"x": x[:9], "y": y[:9]}], goal=Goal(bytes=0.5), progress=False)


def test_half_precision_takes_and_gives_what_the_model_does() -> None:
    model = trained_mlp()
    half = in_bfloat16(model)
    x = digits().valid[0]
    with torch.no_grad():
        found, whole = half(x), model(x)
    assert found.dtype == whole.dtype == torch.float32
    assert 0 < float((found - whole).abs().max()) < 0.2
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert list(half.state_dict()) == list(model.state_dict())


def test_a_rival_that_does_as_well_is_named_and_masks_are_not_blamed() -> None:
    result = run(trained_mlp(), Goal(max_drop=30.0, bytes=0.7), rivals=True, trials=1)
    record = result.record
    chosen = record.point(record.chosen)
    half = record.rivals[0].trial
    assert half is not None
    better = replace(half, bytes=chosen.bytes, test=replace(half.told, value=100.0))
    twin = replace(record, rivals=(replace(record.rivals[0], trial=better),))
    assert "think of taking it" in page(twin)
    for worse in ({"bytes": 2 * chosen.bytes}, {"speedup": 0.5 * chosen.speedup}):
        slower = replace(record, rivals=(replace(record.rivals[0], trial=replace(better, **worse)),))
        assert "think of taking it" not in page(slower)
    notes = result.report.records[result.report.names.index("bfloat16")].notes
    assert not any("masked" in note for note in notes)
