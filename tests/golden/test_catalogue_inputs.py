"""The catalogue's worked numbers for criteria that read the inputs of layers; each test is named by its id."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc

T = torch.tensor
W = T([[0.1, -2.0, 0.3, 0.4], [1.0, 0.2, -0.5, 0.05]])
X = T([[1.0, 0.1, 2.0, 4.0], [1.0, 0.2, 0.0, 3.0]])


def _net() -> nn.Linear:
    net = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(W)
    return net


def _gone(mask: Tensor) -> list[list[int]]:
    return [(~row).nonzero().flatten().tolist() for row in mask]


def test_w18_wanda() -> None:
    scores = sc.score(_net(), "wanda", data=X)["weight"]
    norms = T([2**0.5, 0.05**0.5, 2.0, 5.0])
    assert torch.allclose(scores, W.abs() * norms)
    per_row = sc.prune(_net(), 0.5, criterion="wanda", within="row", data=X)
    assert _gone(per_row["weight"]) == [[0, 1], [1, 3]]
    flat = sc.prune(_net(), 0.5, criterion="wanda", data=X)
    assert (~flat["weight"]).flatten().nonzero().flatten().tolist() == [0, 1, 5, 7]
    assert _gone(sc.prune(_net(), 0.5, within="row")["weight"]) == [[0, 2], [1, 3]]


def test_w18_ria() -> None:
    plain = sc.score(_net(), "ria(a=0)", data=X)["weight"]
    assert plain[0].tolist() == pytest.approx([0.126623, 1.623377, 0.482143, 1.031746], abs=1e-6)
    scores = sc.score(_net(), "ria", data=X)["weight"]
    assert scores[0].tolist() == pytest.approx([0.150581, 0.767647, 0.681853, 2.307054], abs=1e-6)
