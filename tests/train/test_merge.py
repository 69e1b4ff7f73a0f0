"""Merging removed units into kept ones: exact on planted copies, refused where it could not be."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.core import CRITERIA
from secateur.types import CriterionEntry

PAIRS = {7: (2, 2.0), 9: (2, 0.5), 11: (5, 3.0), 3: (0, 1.0)}
"""Copy -> original and factor; the smaller of two goes."""


def _plant(layer: Any, pairs: dict[int, tuple[int, float]]) -> None:
    layer.double()  # where 3 w is 3 w
    with torch.no_grad():
        for copied, (original, factor) in pairs.items():
            layer.weight[copied] = factor * layer.weight[original]
            if layer.bias is not None:
                layer.bias[copied] = factor * layer.bias[original]


def _dense() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.LeakyReLU(0.1), nn.Linear(12, 3))
    _plant(net[0], PAIRS)
    return net, torch.randn(5, 6)


def _images() -> tuple[nn.Module, Tensor]:
    """Padding, pooling, and a flattened reader with several places per channel."""
    net = nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 12, 3, padding=1))
    net.extend([nn.ReLU(), nn.Flatten(), nn.Linear(12 * 4, 3)])
    _plant(net[0], PAIRS)
    _plant(net[3], PAIRS)
    return net, torch.randn(5, 2, 4, 4)


class _Stream(nn.Module):
    """A residual stream: both producers of a channel have to be multiples alike."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 12), nn.Linear(12, 3)
        _plant(self.a, PAIRS)
        _plant(self.c, PAIRS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.out(torch.relu(x + self.c(torch.relu(self.b(x)))))


def _residual() -> tuple[nn.Module, Tensor]:
    return _Stream(), torch.randn(5, 6)


@pytest.mark.parametrize("make", [_dense, _images, _residual])
def test_merging_planted_multiples_leaves_the_output_as_it_was(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    torch.manual_seed(0)
    net, x = make()
    net, x = net.double(), x.double()
    whole = net(x)
    groups = sc.groups(net, x)
    chosen = [name for name, group in groups.items() if _planted(net, group)]
    options: dict[str, Any] = {"unit": "channel", "example_inputs": x, "targets": chosen}
    plain, _ = sc.prune(net, 4 / 12, criterion="cosine", inplace=False, **options)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    merged, masks = sc.prune(net, 4 / 12, criterion="cosine", merge=True, inplace=False, **options)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(int(mask.sum()) == 8 for mask in masks.unit_masks.values())
    assert torch.allclose(merged(x), whole, rtol=0, atol=1e-9)
    assert (plain(x) - whole).abs().max() > 1e-2  # without merging something is lost
    small = sc.shrink(merged, example_inputs=x)
    assert torch.allclose(small(x), whole, rtol=0, atol=1e-9)
    masks.undo()
    assert all(torch.equal(tensor, state[name]) for name, tensor in merged.state_dict().items())


def _planted(net: nn.Module, group: Any) -> bool:
    makers = [net.get_parameter(member.name) for member in group.members if member.part == "out"]
    return all(torch.equal(weight[3], weight[0]) for weight in makers)


def _longest_first(weight: Tensor) -> Tensor:
    return -weight[0].square().sum(1)


@pytest.mark.parametrize(("row", "expected"), [(CRITERIA["cosine"], [0.0, 0.65]), (None, [1.3, 0.0])])
def test_w6_merged_weight(row: CriterionEntry | None, expected: list[float]) -> None:
    """The catalogue removes the longer unit, the greedy rule the shorter one: .3 + .7 / 2."""
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -1.0, 0.5], [2.0, -2.0, 1.0]]))
        net[0].bias.copy_(torch.tensor([0.1, 0.2]))
        net[2].weight.copy_(torch.tensor([[0.7, 0.3]]))
    x = torch.randn(4, 3).double()
    whole = net(x)
    criterion = row or replace(CRITERIA["cosine"], function=_longest_first)
    sc.prune(net, 0.5, criterion=criterion, unit="channel", example_inputs=x, merge=True)
    assert net[2].weight.flatten().tolist() == pytest.approx(expected)
    assert torch.allclose(net(x), whole)


@pytest.mark.parametrize("between", [nn.GELU, nn.Tanh, nn.ReLU])
def test_srinivas_babu_adds_up_behind_any_function(between: type[nn.Module]) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 12), between(), nn.Linear(12, 3)).double()
    _plant(net[0], {copied: (original, 1.0) for copied, (original, _) in PAIRS.items()})
    x = torch.randn(5, 6).double()
    whole = net(x)
    before = net[2].weight.detach().clone()
    masks = sc.prune(net, 4 / 12, criterion="srinivas_babu", unit="channel", example_inputs=x, merge=True)
    assert torch.allclose(net(x), whole, rtol=0, atol=1e-10)
    kept = masks.unit_masks["0.weight"]
    (left,) = [unit for unit in (2, 7, 9) if kept[unit]]
    assert torch.allclose(net[2].weight[:, left], before[:, [2, 7, 9]].sum(1))


def test_units_that_are_no_copies_are_merged_approximately() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    _plant(net[0], PAIRS)
    with torch.no_grad():
        net[0].weight.add_(0.01 * torch.randn_like(net[0].weight))
    x = torch.randn(50, 6).double()
    whole, gaps = net(x), {}
    for merge in (False, True):
        other, _ = sc.prune(
            net, 4 / 12, criterion="cosine", unit="channel", example_inputs=x, merge=merge, inplace=False
        )
        gaps[merge] = (other(x) - whole).norm()
    assert gaps[True] < 0.1 * gaps[False]


def test_what_was_gone_before_hands_nothing_on() -> None:
    net, x = _dense()
    net, x = net.double(), x.double()
    options: dict[str, Any] = {"criterion": "cosine", "unit": "channel", "example_inputs": x, "targets": "0"}
    sc.prune(net, 2 / 12, **options)
    whole = net(x)
    masks = sc.prune(net, 4 / 12, merge=True, **options)
    assert int(masks.unit_masks["0.weight"].sum()) == 8
    assert torch.allclose(net(x), whole, atol=1e-5)


def test_orthogonal_units_have_no_heir() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 4)
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4))
    before = net[2].weight.detach().clone()
    masks = sc.prune(net, 0.5, criterion="cosine", unit="channel", example_inputs=x, merge=True)
    kept = masks.unit_masks["0.weight"]
    assert torch.equal(net[2].weight[:, kept], before[:, kept])


_NO_LINE = nn.BatchNorm1d(12, track_running_stats=False)  # by the batch: whatever the multiple, it is divided away
_LAYER = itertools.product(["cosine", "srinivas_babu"], [nn.LayerNorm(12)])


@pytest.mark.parametrize(
    ("criterion", "between"), [("cosine", nn.GELU()), ("cosine", nn.Tanh()), ("cosine", _NO_LINE), *_LAYER]
)
def test_where_it_cannot_be_exact_it_is_refused(criterion: str, between: nn.Module) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 12), between, nn.ReLU(), nn.Linear(12, 3))
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    options: dict[str, Any] = {"example_inputs": torch.randn(2, 6), "exact": not isinstance(between, nn.LayerNorm)}
    with pytest.raises(ValueError, match=r"units of '0.weight' cannot take over .* exclude=\['0.weight'\]"):
        sc.prune(net, 0.5, criterion=criterion, unit="channel", merge=True, **options)
    assert sc.find_masks(net) is None
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


class _Summed(nn.Module):
    """Units that are added up, so that no weight reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x) + torch.relu(self.a(x)).sum(-1, keepdim=True)


def test_units_that_no_weight_reads_are_refused() -> None:
    net, x = _Summed(), torch.randn(2, 6)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"merge=True: no weight reads the units of 'a.weight'.*exclude=\['a.weight'\]"
    ):
        sc.prune(net, 0.5, criterion="cosine", unit="channel", example_inputs=x, merge=True)
    assert sc.find_masks(net) is None
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_bad_questions_are_answered_in_words() -> None:
    net, x = _dense()
    net, x = net.double(), x.double()
    for criterion in ("l2", "weight_correlation", sc.combine({"cosine": 1.0}), lambda weight: weight):
        with pytest.raises(
            ValueError, match=r"which unit takes over.*'cosine', 'srinivas_babu', 'activation_corr\w+' do"
        ):
            sc.prune(net, 0.5, criterion=criterion, unit="channel", example_inputs=x, merge=True)
    with pytest.raises(ValueError, match="take unit='channel'"):
        sc.prune(net, 0.5, criterion="cosine", unit="filter", merge=True)
