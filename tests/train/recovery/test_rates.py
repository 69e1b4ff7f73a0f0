"""Rates per layer, and counts of each round."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core import parse_unit, unit_sizes
from secateur.model.group_targets import find_layout
from secateur.train.recovery.rates import layer_rates, next_cut, sparsities_of
from tests.train.recovery.nets import convolutions, mlp


def test_a_global_rate_counts_what_is_left_exactly() -> None:
    sizes, left = {"a": 7, "b": 6}, {"a": 7, "b": 6}
    counts = []
    for _ in range(6):
        cut = next_cut(sizes, left, 0.2)
        kept = Fraction(13) - Fraction(cut.sparsity) * 13
        counts.append(round(float(kept)))
        left = {"a": counts[-1], "b": 0}
    assert counts == [10, 8, 6, 5, 4, 3]  # 13, minus floor(.2 n + .5) each time
    assert cut.counts is None


def test_rates_of_layers_by_name_glob_type_and_the_last_that_matches() -> None:
    net = mlp()
    layout = find_layout(net, None, None, parse_unit("weight")[0])
    assert layer_rates(net, layout, 0.2, None) == 0.2
    assert layer_rates(net, layout, 0.2, {"5": 0.1}) == {"0.weight": 0.2, "3.weight": 0.2, "5.weight": 0.1}
    assert layer_rates(net, layout, 0.2, {nn.Linear: 0.3, "0.*": 0.0}) == {
        "0.weight": 0.0,
        "3.weight": 0.3,
        "5.weight": 0.3,
    }


def test_rates_reach_the_groups_of_unit_channel() -> None:
    net = convolutions()
    layout = find_layout(net, None, None, parse_unit("channel")[0], torch.randn(2, 1, 6, 6))
    rates = layer_rates(net, layout, 0.2, {"3": 0.5})
    assert rates == {"0.weight": 0.2, "3.weight": 0.5}
    cut = next_cut(unit_sizes(parse_unit("channel")[0], layout), {"0.weight": 6, "3.weight": 8}, rates)
    assert cut.counts == {"0.weight": 5, "3.weight": 4}


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.one(x) + self.two(x)))


def test_a_group_is_reached_by_any_layer_that_makes_it() -> None:
    layout = find_layout(Added(), None, None, parse_unit("channel")[0], torch.randn(2, 4))
    assert list(layout) == ["one.weight"]
    assert layer_rates(Added(), layout, 0.2, {"two": 0.5}) == {"one.weight": 0.5}


def test_counts_of_layers_round_half_up() -> None:
    cut = next_cut({"a": 8, "b": 13, "c": 12}, {"a": 8, "b": 13, "c": 12}, {"a": 0.2, "b": 0.5, "c": 0.2})
    assert cut.counts == {"a": 6, "b": 6, "c": 10}  # of 1.6, 6.5 and 2.4 go 2, 7 and 2


def test_the_counts_are_what_prune_keeps() -> None:
    net = mlp()
    sizes = {"0.weight": 72, "3.weight": 96, "5.weight": 24}
    cut = next_cut(sizes, sizes, {"0.weight": 0.2, "3.weight": 0.5, "5.weight": 0.0})
    masks = sc.prune(net, cut.sparsity, allocation=cut.allocation)
    assert {name: masks.kept(name) for name in masks} == {"0.weight": 58, "3.weight": 48, "5.weight": 24}


@pytest.mark.parametrize(
    ("rate", "rates", "told"),
    [
        (0, None, "rate=0"),
        (1.0, None, "rate=1.0"),
        (20, None, "rate=20"),
        (True, None, "rate=True"),
        (0.2, {"5": 1.5}, r"rates\['5'\]=1.5"),
        (0.2, {"6": 0.1}, "rates='6' matches nothing"),
    ],
)
def test_wrong_rates_are_named(rate, rates, told) -> None:
    net = mlp()
    layout = find_layout(net, None, None, parse_unit("weight")[0])
    with pytest.raises(ValueError, match=told):
        layer_rates(net, layout, rate, rates)


def test_a_round_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="less than one unit"):
        next_cut({"a": 10}, {"a": 2}, 0.2)


@pytest.mark.parametrize(
    ("sparsities", "told"),
    [
        ([], "empty"),
        ([0.5, 0.5], r"sparsities\[1\]=0.5"),
        ([0.0], r"sparsities\[0\]"),
        ([0.5, 90], r"sparsities\[1\]=90"),
    ],
)
def test_wrong_sparsities_are_named(sparsities, told) -> None:
    with pytest.raises(ValueError, match=told):
        sparsities_of(sparsities)


def test_sparsities_are_kept_as_given() -> None:
    assert sparsities_of(torch.tensor([0.25, 0.5]).tolist()) == (0.25, 0.5)
