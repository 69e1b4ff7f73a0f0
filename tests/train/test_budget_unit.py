"""Whose weights score a unit that several layers make, and how they come together: ``unit=`` of ``shrink``."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.core.unit_channel import Channel
from secateur.train.compress import Stage
from secateur.train.compress.road import trained, untrained
from tests.train.compress.test_roads import setting

X = torch.zeros(2, 3)
WAYS = ("channel", "channel(out, weights)", "channel(all)", "channel(all, weights)")


class Stream(nn.Module):
    """A stream of 12 channels, made by two layers of 3 and 20 weights a channel, read by two."""

    def __init__(self, width: int = 3, outputs: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(width, 12, bias=False)
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12)
        self.last = nn.Linear(12, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.down(F.relu(self.up(x))))


class Heads(nn.Module):
    """Six heads of two places."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 12, bias=False) for _ in range(3))
        self.o = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).view(len(x), 7, -1, 2).transpose(1, 2) for one in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 7, -1))


def drawn(model: nn.Module, seed: int) -> Any:
    """Weights of very different sizes, from unit to unit."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            rows = torch.rand(len(parameter), *[1] * (parameter.dim() - 1), generator=generator)
            parameter.copy_(rows * torch.randn(parameter.shape, generator=generator))
    return model


def l2_by_hand(tensors: list[Tensor], spec: str) -> list[float]:
    """The score of each unit, from the slices [unit, anything] that are scored, in plain floats."""
    scores = []
    for unit in range(len(tensors[0])):
        slices = [[float(value) for value in tensor[unit].flatten()] for tensor in tensors]
        squares = [sum(value * value for value in one) for one in slices]
        pooled = math.sqrt(sum(squares))
        scores.append(pooled if "weights" in spec else sum(map(math.sqrt, squares)) / len(squares))  # mean of norms
    return scores


def best(scores: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda unit: -scores[unit])[:count])


def kept_in_stream(model: Any, spec: str) -> list[int]:
    makers = [model.first.weight, model.down.weight]
    readers = [model.up.weight.T, model.last.weight.T] if "all" in spec else []
    return best(l2_by_hand([one.detach().double() for one in (*makers, *readers)], spec), 6)


@pytest.mark.parametrize("spec", WAYS)
def test_the_unit_says_what_makes_a_score(spec: str) -> None:
    model = drawn(Stream(), seed=7)
    small = sc.shrink(model, example_inputs=X, sparsity=0.5, allocation="uniform", unit=spec)
    kept = kept_in_stream(model, spec)
    assert torch.equal(small.first.weight, model.first.weight[kept])
    assert torch.equal(small.last.weight, model.last.weight[:, kept])
    again = sc.shrink(model, example_inputs=X, sparsity=0.5, allocation="uniform", unit=own(spec))
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))


def own(spec: str) -> Channel:
    return Channel("all" if "all" in spec else "out", "weights" if "weights" in spec else "members")


@pytest.mark.parametrize("model", [drawn(Stream(), seed=7), drawn(Stream(64, 10), seed=21)])
def test_the_four_ways_differ_here(model: Any) -> None:
    assert len({tuple(kept_in_stream(model, spec)) for spec in WAYS}) == 4


@pytest.mark.parametrize("spec", ["head", "head(out, weights)"])
def test_heads_are_scored_alike(spec: str) -> None:
    model = drawn(Heads(), seed=2)
    with torch.no_grad():
        model.v.weight *= 0.1
    small = sc.shrink(model, example_inputs=torch.randn(2, 7, 5), sparsity=0.5, unit=spec)
    makers = [one.weight.detach().double().view(6, 2, 5) for one in (model.q, model.k, model.v)]
    kept = {way: best(l2_by_hand(makers, way), 3) for way in ("head", "head(out, weights)")}
    assert kept["head"] != kept["head(out, weights)"]
    assert torch.equal(small.v.weight, model.v.weight.view(6, 2, 5)[kept[spec]].flatten(0, 1))


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("filter", "unit='filter': give 'channel', 'head' or 'head_dim'; with"),
        ("channel(in)", r"unit='channel\(in\)': give"),
        ("head(out, rows)", r"unit='head\(out, rows\)': give"),
        ("head(out", r"unit='head\(out': give"),
        (3, "unit=3: give"),
        (None, "unit=None: give"),
    ],
)
def test_other_units_are_named(unit: Any, words: str) -> None:
    model = drawn(Stream(), seed=0)
    with pytest.raises(ValueError, match=words):
        sc.shrink(model, example_inputs=X, sparsity=0.5, unit=unit)


@pytest.mark.parametrize("choice", [{"units": {"first.weight": [0]}}, {"from_zeros": True}])
def test_words_that_score_nothing_are_refused(choice: Any) -> None:
    model = drawn(Stream(), seed=0)
    with pytest.raises(ValueError, match=r"the words in unit='channel\(all\)' choose units for a budget"):
        sc.shrink(model, example_inputs=X, unit=" channel( all )", **choice)


@pytest.mark.parametrize("walk", [untrained, trained])
@pytest.mark.parametrize("spec", WAYS)
def test_a_stage_passes_its_unit_on(spec: str, walk: Any) -> None:
    model = drawn(Stream(64, 10), seed=21)
    here = setting(model, recovery=sc.Training(1, lr=1e-12, loss=F.cross_entropy))
    made = walk(here, (Stage(unit=spec, allocation="uniform"),), (0.5,))
    small = made if walk is untrained else made.model
    torch.testing.assert_close(small.first.weight, model.first.weight[kept_in_stream(model, spec)])
