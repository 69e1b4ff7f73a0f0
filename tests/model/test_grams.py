"""Grams of wide layers, which are put together from blocks, against sums written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.core.units import parse_unit
from secateur.model.evidence import Source, collect
from secateur.model.targets import find_targets


def gram_of(net: nn.Module, data: Any) -> Tensor:
    found = collect(net, ["gram"], find_targets(net), parse_unit("weight")[0], Source(data, batches=9))
    (only,) = found["gram"].values()
    return only


def same(found: Tensor, x: Tensor) -> None:
    """A gram and the rows it is of."""
    assert found.dtype == torch.float64
    assert torch.equal(found, found.t()), "symmetric to the bit"
    torch.testing.assert_close(found, torch.einsum("ni,nj->ij", x, x), rtol=1e-12, atol=1e-9)
    width = len(found)
    for i, j in ((0, 0), (0, width - 1), (width - 1, 0), (width // 2, width // 3), (width - 1, width - 1)):
        exact = math.fsum((x[:, i] * x[:, j]).tolist())
        assert float(found[i, j]) == pytest.approx(exact, rel=1e-12, abs=1e-9)


@settings(max_examples=25)
@given(st.integers(1, 900), st.integers(1, 6), st.integers(1, 2), st.integers(0, 99))
def test_every_width(width: int, rows: int, batches: int, seed: int) -> None:
    x = torch.randn(batches, rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    same(gram_of(nn.Linear(width, 1).double(), list(x))[0], x.flatten(0, 1))


@pytest.mark.parametrize("padded", [False, True])
def test_tokens_that_do_not_count(padded: bool) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(300, 2).double()

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.read(x)

    x = torch.randn(4, 5, 300, dtype=torch.float64)
    mask = torch.ones(4, 5).long()
    mask[:, 3:] = 0 if padded else 1
    same(gram_of(Words(), {"x": x, "attention_mask": mask})[0], x[mask.bool()])


@pytest.mark.parametrize("transposed", [False, True])
def test_windows_of_more_images_than_are_copied_at_once(transposed: bool) -> None:
    """405 columns at 1,024 places an image: five images at a time."""
    torch.manual_seed(0)
    x = torch.randn(12, 45, 32, 32, dtype=torch.float64)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    found = gram_of(kind(45, 2, 3, padding=1).double(), x)[0]
    rows = F.unfold(x, 3, padding=1).reshape(12, 45, 9, -1)
    rows = rows.flip(2) if transposed else rows  # a transposed convolution reads the kernel backwards
    same(found, rows.reshape(12, 405, -1).transpose(1, 2).reshape(-1, 405))


@pytest.mark.parametrize("match", ["layer", "dense"])
def test_a_wide_layer_is_refitted_to_the_least_error(match: Any) -> None:
    """At the best kept weights and bias nothing is left to gain: the derivatives of the squared error are zero."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(40, 260), nn.ReLU(), nn.Linear(260, 3)).double(), torch.randn(3000, 40).double()
    dense = net(x).detach()
    old, bias = net[2].weight.detach().clone(), net[2].bias.detach().clone()
    masks = sc.prune(net, 0.5, allocation="uniform")
    sc.reconstruct(net, data=x, match=match, damping=0.0)
    now = net[:2](x).detach()
    aim = dense if match == "dense" else now @ old.t() + bias
    error = net(x).detach() - aim
    slope = (error.t() @ now) * masks["2.weight"]
    assert float(slope.abs().max()) < 1e-6 * float(now.square().sum())
    start = (now @ (old * masks["2.weight"]).t() + bias - aim).square().sum()
    assert float(error.square().sum()) < 0.2 * float(start)
    if match == "dense":
        assert float(error.sum(0).abs().max()) < 1e-6 * len(x)
