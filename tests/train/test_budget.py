"""Budgets: what is asked for holds on the model that comes out, no more goes than that takes, or it is refused."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.benchmark.models import Residual, ResNet20
from secateur.measure import count
from secateur.records import Latency
from tests.train.budget_nets import by_hand, mlp, real

X = torch.zeros(2, 6)
IMAGE = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize("asked", [{"macs": 0.5}, {"params": 0.4}, {"bytes": 0.7}, {"macs": 0.6, "params": 100}])
def test_no_more_goes_than_the_budget_takes(asked: dict[str, float]) -> None:
    model = mlp()
    dense = real(model, X)
    limits = {name: value * dense[name] if value <= 1 else value for name, value in asked.items()}
    expected = by_hand(model, X, limits)
    small = sc.shrink(model, example_inputs=X, **asked)
    assert [small[0].out_features, small[2].out_features] == [
        12 - len(expected["0.weight"]),
        9 - len(expected["2.weight"]),
    ]
    kept = [unit for unit in range(12) if unit not in expected["0.weight"]]
    assert torch.equal(small[0].weight, model[0].weight[kept])
    figures = real(small, X)
    assert all(figures[name] <= limit for name, limit in limits.items())
    assert real(model, X) == dense


@pytest.mark.parametrize("criterion", ["l2", "random", "taylor"])
@pytest.mark.parametrize("share", [0.8, 0.5])
def test_a_network_with_fixed_places_meets_its_budget_and_says_so(criterion: str, share: float) -> None:
    torch.manual_seed(0)
    model, x = ResNet20(), torch.randn(2, 3, 32, 32)
    batch = (x, torch.tensor([1, 2]))
    data: dict[str, Any] = (
        {"data": batch, "loss": nn.functional.cross_entropy, "batches": 1} if criterion == "taylor" else {}
    )
    small = sc.shrink(model, example_inputs=x, macs=share, criterion=criterion, **data)
    left = count(small, x).macs / 40_551_040
    assert share - 0.02 < left <= share
    record = sc.shrinkage(small)
    assert record is not None
    assert (record.before.macs, record.after.macs) == (40_551_040, count(small, x).macs)
    assert any("of fixed width" in note and "layer2.0.conv2.weight (16 of 32 outputs)" in note for note in record.notes)


def test_a_budget_that_cannot_be_met_names_the_least_and_what_holds_it() -> None:
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    least = real(sc.shrink(model, units={"0.weight": range(11), "2.weight": range(8)}, example_inputs=X), X)
    with pytest.raises(ValueError, match="cannot be met") as caught:
        sc.shrink(model, example_inputs=X, params=10, inplace=True)
    assert f"params <= 10 cannot be met: with the least that every group may keep, {least['params']} are left" in str(
        caught.value
    )
    assert "0.weight: 6 (as narrow as it may get)" in str(caught.value)
    with pytest.raises(ValueError, match=r"0.weight: 72 \(targets= and exclude= leave it out\)"):
        sc.shrink(model, example_inputs=X, macs=0.3, exclude="0")
    with pytest.raises(ValueError, match=r"4.weight: \d+ \(it is an output of the model\)"):
        sc.shrink(mlp(6, 2, 40), example_inputs=X, macs=0.01, targets="0")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("share", "gone"), [(0.5, 11), (0.1, 2), (0.9, 19)])
def test_sparsity_counts_units_exactly(share: float, gone: int) -> None:
    small = sc.shrink(mlp(), example_inputs=X, sparsity=share)  # 21 units: floor(S * 21 + 0.5)
    assert 21 - small[0].out_features - small[2].out_features == gone


@pytest.mark.parametrize("round_to", [4, {"0": 4, "2": 3}, {"*": 8}])
def test_widths_are_rounded_and_the_budget_still_holds(round_to: Any) -> None:
    model = mlp(6, 32, 24)
    small = sc.shrink(model, example_inputs=X, macs=0.5, round_to=round_to)
    multiples = [round_to.get("0", 8), round_to.get("2", 8)] if isinstance(round_to, dict) else [round_to] * 2
    widths, dense = [small[0].out_features, small[2].out_features], [32, 24]
    assert [width % multiple for width, multiple in zip(widths, multiples, strict=True)] == [0, 0]
    limit = 0.5 * real(model, X)["macs"]
    assert 6 * widths[0] + widths[0] * widths[1] + widths[1] * 4 <= limit
    for place in (0, 1):  # nothing that would fit is left out
        wider = list(widths)
        wider[place] = min(wider[place] + multiples[place], dense[place])
        assert wider == widths or 6 * wider[0] + wider[0] * wider[1] + wider[1] * 4 > limit


def _clock(ms: Callable[[int], float]) -> Callable[..., dict[str, Latency]]:
    """A clock that goes by the width of the first layer."""

    def latency(models: Mapping[str, nn.Sequential], inputs: Any, **_: Any) -> dict[str, Latency]:
        times = {name: ms(model[0].out_features) for name, model in models.items()}
        return {name: Latency(len(inputs[0]), 1, each, each, each, 5) for name, each in times.items()}

    return latency


@pytest.mark.parametrize(("asked", "most"), [(0.5, 16), (6.0, 24), (1.0, 32)])
def test_a_budget_of_time_is_measured(monkeypatch: pytest.MonkeyPatch, asked: float, most: int) -> None:
    monkeypatch.setattr("secateur.train.budget.latency", _clock(lambda width: width / 4))  # dense: 8 ms
    small = sc.shrink(mlp(6, 32, 24), example_inputs=X, latency_ms=asked)
    record = sc.shrinkage(small)
    assert record is not None
    assert most - 2 <= small[0].out_features <= most
    assert record.before.latency_ms == 8.0
    assert record.after.latency_ms == small[0].out_features / 4
    assert record.limits["latency_ms"] == (asked if asked > 1 else asked * 8.0)


def test_time_that_no_width_brings_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.train.budget.latency", _clock(lambda width: 7.0 + width / 32))
    with pytest.raises(ValueError, match=r"latency_ms <= 4.00 cannot be met: 7.03 ms were measured"):
        sc.shrink(mlp(6, 32, 24), example_inputs=X, latency_ms=0.5)


def test_widths_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.train.budget.latency", _clock(lambda width: width + (50.0 if width % 16 else 0.0)))
    model = mlp(6, 64, 48)
    plain, small = (sc.shrink(model, example_inputs=X, macs=0.5, round_to=way) for way in (None, "measured"))
    assert plain[0].out_features % 16
    assert small[0].out_features % 16 == 0
    assert real(small, X)["macs"] <= real(plain, X)["macs"]
    record = sc.shrinkage(small)
    assert record is not None
    assert any("the fastest here of 1: " in note for note in record.notes)
    timed = sc.shrink(model, example_inputs=X, latency_ms=40.0, round_to="measured")
    assert timed[0].out_features == 32


def test_time_on_this_machine() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 10)), torch.randn(64, 64)
    record = sc.shrinkage(sc.shrink(model, example_inputs=x, latency_ms=0.6))
    assert record is not None
    assert record.before.latency_ms is not None
    assert record.after.latency_ms is not None
    assert record.after.latency_ms <= 0.6 * record.before.latency_ms


def test_masks_and_units_come_first() -> None:
    model = mlp()
    small = sc.shrink(model, units={"0.weight": [0, 5]}, example_inputs=X, macs=0.6)
    assert not any(torch.equal(row, model[0].weight[unit]) for row in small[0].weight for unit in (0, 5))
    assert real(small, X)["macs"] <= 0.6 * real(model, X)["macs"]
    strongest = int(model[0].weight.norm(dim=1).argmax())
    sc.prune(model, 0.2, unit="channel", criterion=lambda weight: -weight.abs(), targets="0", example_inputs=X)
    small = sc.shrink(model, example_inputs=X, macs=0.6)
    assert not any(torch.equal(row[:2], mlp()[0].weight[strongest, :2]) for row in small[0].weight)


def test_statistics_are_taken_again_on_whatever_comes_out() -> None:
    torch.manual_seed(0)
    model = Residual()
    batches = [(torch.randn(16, 1, 8, 8), torch.randint(10, (16,))) for _ in range(2)]
    plain = sc.shrink(model, example_inputs=IMAGE, macs=0.5)
    again = sc.shrink(model, example_inputs=IMAGE, macs=0.5, recalibrate=batches, valid=batches)
    own, optimizer = copy.deepcopy(model), torch.optim.Adam(model.parameters())
    copied, _ = sc.shrink(model, example_inputs=IMAGE, macs=0.5, recalibrate=batches, optimizer=optimizer)
    assert sc.shrink(own, example_inputs=IMAGE, macs=0.5, recalibrate=batches, inplace=True) is own
    before, after = plain.stem[1].running_var, again.stem[1].running_var
    assert not torch.allclose(before, after)
    for other in (copied, own):
        assert all(
            torch.equal(a, b) for a, b in zip(again.state_dict().values(), other.state_dict().values(), strict=True)
        )
        assert sc.shrinkage(other) is not None
    record = sc.shrinkage(again)
    assert record is not None
    assert record.recalibration is not None
    assert record.recalibration.before is not None
    assert "before recalibration" in str(record)
    assert json.loads(json.dumps(record.to_record()))["recalibration"]["after"]["split"] == "valid"


def test_the_record_is_readable_and_goes_with_the_model() -> None:
    model = mlp()
    small = sc.shrink(nn.DataParallel(model), example_inputs=X, params=0.5, bytes=100_000)
    record = sc.shrinkage(small)
    assert record is not None
    assert record.requested == {"params": 0.5, "bytes": 100_000}
    text = str(record)
    figures, dense = real(small, X), real(model, X)
    line = next(line for line in text.splitlines() if line.startswith("params"))
    assert line.split() == ["params", "241", str(figures["params"]), f"{100 * figures['params'] / 241:.1f}%", "120"]
    assert dense["params"] == 241
    assert f"0.weight     12 -> {small[0].out_features} channels" in text
    assert json.loads(json.dumps(record.to_record()))["after"]["bytes"] == figures["bytes"]
    masked = mlp()
    sc.prune(masked, 0.5, unit="channel", example_inputs=X)
    other = sc.shrinkage(sc.shrink(masked, example_inputs=X))
    assert other is not None
    assert (other.requested, other.after.macs) == ({}, None)
    assert sc.shrinkage(model) is None
    from secateur.train.shrinkage import _KNOWN

    del small, line
    gc.collect()
    assert record not in list(_KNOWN.values())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"macs": 0}, "macs=0: give a fraction"),
        ({"params": -3}, "params=-3"),
        ({"bytes": float("nan")}, "bytes=nan"),
        ({"macs": True}, "macs=True"),
        ({"sparsity": 1.0}, "lies in"),
        ({"macs": 0.5, "allocation": "erk"}, "allocation='erk'"),
        ({"macs": 0.5, "round_to": {"7": 8}}, "round_to='7' matches no layer"),
        ({"macs": 0.5, "targets": "layer9"}, "targets='layer9' matches nothing"),
        ({"macs": 0.5, "criterion": "snip"}, "data"),
        ({"round_to": 8, "targets": "0"}, "targets=, round_to= choose units for a budget"),
        ({"macs": 0.5, "valid": [(X, X)]}, "give recalibrate= too"),
        ({"macs": 0.5, "recalibrate": [X]}, "no batch norm"),
        ({}, "or give a budget"),
    ],
)
def test_mistakes_are_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sc.shrink(mlp(), example_inputs=X, **asked)


def test_a_count_that_the_real_model_does_not_keep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_many(*_: Any, **__: Any) -> Any:
        return type("Counts", (), {"macs": 10_000})

    monkeypatch.setattr("secateur.train.choosing.count", too_many)
    with pytest.raises(ValueError, match="nothing was changed: the smaller model has 10,000 macs"):
        sc.shrink(mlp(), example_inputs=X, macs=0.5)


def test_multiply_adds_that_nobody_counts_are_no_budget() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.a) @ self.b

    with pytest.raises(
        ValueError, match=r"no multiply-add is counted here \(no rule counts those of 'Raw'\); give params="
    ):
        sc.shrink(Raw(), example_inputs=X, macs=0.5)
    small = sc.shrink(Raw(), example_inputs=X, params=0.5)
    assert small.a.shape == (6, 4)
    record = sc.shrinkage(small)
    assert record is not None
    assert "multiply-adds of 'Raw' are not counted" in record.notes


def test_heads_have_budgets_too() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=False) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            parts = (layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
            out = nn.functional.scaled_dot_product_attention(*parts)
            return self.o(out.transpose(1, 2).flatten(2))

    model, x = Heads(), torch.randn(2, 5, 16)
    small = sc.shrink(model, example_inputs=x, params=0.5, unit="head")
    assert small.q.out_features == 8
    assert small(x).shape == (2, 5, 16)
