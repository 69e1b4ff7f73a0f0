"""Worked numbers of the catalogue on merging (W6), through the pruning of a network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.core import CRITERIA


def call(x: Tensor, criterion: Any, **more: Any) -> dict[str, Any]:
    return {"criterion": criterion, "unit": "channel", "example_inputs": x, "merge": True, **more}


def shorter_first(weight: Tensor) -> Tensor:
    return weight[0].square().sum(1)


def longer_first(weight: Tensor) -> Tensor:
    return -weight[0].square().sum(1)


def more_varied_first(activation_covariance: Tensor) -> Tensor:
    return -activation_covariance.diagonal()


@torch.no_grad()
def _behind_a_norm(net: Any) -> None:
    """The same units by other weights: the norm turns -1/2 of the first and 1 of the second row into 1 and 2."""
    row = torch.tensor([1.0, -1.0, 0.5]).double()
    net[0].weight.copy_(torch.stack([row / -2, row]))
    net[0].bias.copy_(torch.tensor([0.7, 0.4]))
    net[1] = nn.BatchNorm1d(2, eps=0.5).double().eval()
    net[1].running_mean.copy_(torch.tensor([0.3, -0.2]))
    net[1].running_var.copy_(torch.tensor([3.5, 0.5]))
    net[1].weight.copy_(torch.tensor([-4.0, 2.0]))
    net[1].bias.copy_(torch.tensor([0.1 + 2 * (0.7 - 0.3), 0.2 - 2 * (0.4 + 0.2)]))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("first", "kept", "expected"), [(longer_first, 0, [1.3, 0.0]), (shorter_first, 1, [0.0, 0.65])]
)
def test_w6_merged_weight(first: Any, kept: int, expected: list[float], norm: bool) -> None:
    x = torch.tensor([[0.5, -1.0, 2.0], [1.0, 1.0, -0.3], [0.0, 0.2, 0.4]]).double()
    net: Any = nn.Sequential(nn.Linear(3, 2), nn.Identity(), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -1.0, 0.5], [2.0, -2.0, 1.0]]))
        net[0].bias.copy_(torch.tensor([0.1, 0.2]))
        net[3].weight.copy_(torch.tensor([[0.7, 0.3]]))
    if norm:
        _behind_a_norm(net)
    criterion = replace(CRITERIA["cosine"], function=first)
    plain, _ = sc.prune(net, 0.5, inplace=False, **{**call(x, criterion), "merge": False})
    merged, masks = sc.prune(net, 0.5, inplace=False, **call(x, criterion))
    assert net(x).flatten().tolist() == pytest.approx([3.38, 0.0, 0.13], abs=1e-6)
    if kept == 0 and not norm:  # the raw rows behind a norm are of other lengths
        assert plain(x).flatten().tolist() == pytest.approx([1.82, 0.0, 0.07], abs=1e-6)
    assert masks.unit_masks["0.weight"].nonzero().flatten().tolist() == [kept]
    assert merged[3].weight.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(merged(x), net(x), rtol=0, atol=1e-7)


def test_w6_noiseout() -> None:
    """Of a1 and a2 the second goes: alpha 2.02, beta .97."""
    x = torch.tensor([[0.0, 1.0], [1.0, 2.9], [2.0, 5.1], [3.0, 7.0]]).double()
    net: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[2].weight.copy_(torch.tensor([[0.7, 0.3]]))
        net[2].bias.fill_(0.5)
    criterion = replace(CRITERIA["activation_correlation"], function=more_varied_first)
    sc.prune(net, 0.5, **call(x, criterion, data=[x]))
    assert net[2].weight.flatten().tolist() == pytest.approx([0.7 + 0.3 * 2.02, 0.0], abs=1e-6)
    assert net[2].bias.tolist() == pytest.approx([0.5 + 0.3 * 0.97], abs=1e-6)
