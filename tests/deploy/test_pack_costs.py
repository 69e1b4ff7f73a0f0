"""The cost table: straight lines between measured points, sums, the sparsity for a time, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.deploy.pack import CostTable, LayerCost
from secateur.runtime.choose import choose
from tests.native.oracle import needs_core

TABLE = CostTable(
    sparsities=(0.0, 0.5, 0.9),
    layers=(
        LayerCost("a", 100, 90.0, {"weight": (100.0, 60.0, 20.0), "block(4, 1)": (100.0, 40.0, 10.0)}),
        LayerCost("b", 50, 30.0, {"weight": (30.0, 20.0, 10.0), "block(4, 1)": (30.0, 15.0, 5.0)}),
    ),
    other_us=5.0,
    dense_us=140.0,
    samples=1,
)


@pytest.mark.parametrize(
    ("sparsity", "us"), [(0.0, 100), (0.25, 80), (0.5, 60), (0.7, 40), (0.9, 20), (0.95, 20), (1.0, 20)]
)
def test_lines_between_points(sparsity: float, us: float) -> None:
    assert TABLE.predict("a", sparsity) == pytest.approx(us)


def test_totals_in_milliseconds() -> None:
    assert TABLE.total(0.5) == pytest.approx(0.085)
    assert TABLE.total({"a": 0.9}, "block(4, 1)") == pytest.approx(0.045)


@given(st.floats(0.036, 0.135))
def test_the_least_sparsity_for_a_time(milliseconds: float) -> None:
    found = TABLE.sparsity_for(milliseconds)
    assert TABLE.total(found) <= milliseconds
    assert found < 1e-6 or TABLE.total(found - 1e-6) > milliseconds


def test_data_and_back() -> None:
    assert CostTable.from_json(TABLE.to_json()) == TABLE
    assert "block(4, 1)" in str(TABLE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TABLE.predict("c", 0.5), "layer 'c': the table has a, b"),
        (lambda: TABLE.predict("a", 0.5, "filter"), "unit 'filter': the table has weight"),
        (lambda: TABLE.predict("a", 1.5), "from 0 to 1"),
        (lambda: TABLE.total({"c": 0.5}), "layer 'c'"),
        (lambda: TABLE.sparsity_for(0.01), "0.01 ms is out of reach: 0.035 ms at 90% zeros"),
        (lambda: sc.cost_table(nn.Linear(2, 2), torch.ones(1, 2), units=("filter",)), "units=.*allowed are 'weight'"),
        (lambda: sc.cost_table(nn.Linear(2, 2), torch.ones(1, 2), sparsities=(0.5, 0.9)), "rise from 0"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


class Net(nn.Module):
    """A shortcut of padding is part of the architecture, no layer to prune; zeros that are there count as weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, padding=1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.a(x))
        y = F.relu(self.b(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.c(y.mean((2, 3)))


@needs_core
def test_every_layer_at_every_sparsity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runtime.choose._ROUNDS", 1)
    model = Net().eval()
    with torch.no_grad():
        model.c.weight.zero_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = sc.cost_table(model, torch.randn(2, 3, 8, 8), units=("weight", "block(4, 1)"), sparsities=(0.0, 0.9))
    assert [layer.name for layer in table.layers] == ["a", "b", "c"]
    assert [layer.weights for layer in table.layers] == [108, 288, 40]
    assert all(set(layer.us) == {"weight", "block(4, 1)"} for layer in table.layers)
    assert all(len(times) == 2 and min(times) > 0 for layer in table.layers for times in layer.us.values())
    assert table.other_us > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@needs_core
@pytest.mark.parametrize("samples", [1, 3])
def test_places_of_a_sequence_are_samples(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def spy(graph: Any, inputs: list[torch.Tensor], lanes: int) -> Any:
        taken.append(len(inputs[0]))
        return choose(graph, inputs, lanes)

    monkeypatch.setattr("secateur.deploy.pack.costs.choose", spy)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    sc.cost_table(net, torch.randn(samples, 20, 8), sparsities=(0.0,))
    assert taken == [20 * samples]
