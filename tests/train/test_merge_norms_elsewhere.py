"""Merging where norms stand elsewhere than behind one layer: they have to treat both units alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.core import CRITERIA
from secateur.model.norms import norms_behind
from tests.train.normed_nets import SCALED, call, chain, plant, random_norms


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.mark.parametrize("between", [(nn.BatchNorm1d(12),), (Scaled(),), (nn.PReLU(12),)])
def test_what_comes_later_has_to_treat_both_alike(between: tuple[nn.Module, ...]) -> None:
    """Behind the activation: the factors of the pair are equal, and a norm's offset is a multiple too."""
    net, x = chain(nn.ReLU(inplace=True), *between)
    with torch.no_grad():
        for parameter in between[0].parameters():
            parameter.uniform_(0.5, 2)
        for copied, (original, factor) in SCALED.items():
            net[0].weight[copied], net[0].bias[copied] = (
                factor * net[0].weight[original],
                factor * net[0].bias[original],
            )
            for name, tensor in between[0].state_dict().items():
                if tensor.dim():
                    times = factor if name in ("bias", "running_mean") else 1
                    tensor[copied] = times * tensor[original]
    whole = net(x)
    assert norms_behind(net, {name: group.layout() for name, group in sc.groups(net, x).items()}, x) == {}
    masks = sc.prune(net, 4 / 12, **call(x))
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-10)
    masks.undo()
    with torch.no_grad():
        first = next(between[0].parameters())
        first[0], first[3] = 1.0, 5.0
    whole = net(x)
    sc.prune(net, 1 / 12, **call(x))
    assert (net(x) - whole).abs().max() > 1e-3  # no multiples any more, and merged all the same


def sixth(weight: Tensor) -> Tensor:
    return (torch.arange(weight.shape[1]) != 5).double()


@torch.no_grad()
@pytest.mark.parametrize("way", ["scale", "offset"])
def test_among_equal_rows_the_heir_is_the_one_that_a_later_norm_treats_alike(way: str) -> None:
    net, x = chain(nn.ReLU(), nn.BatchNorm1d(12))
    for unit in (2, 8):
        net[0].weight[unit], net[0].bias[unit] = net[0].weight[5], net[0].bias[5]
        for tensor in (net[2].weight, net[2].bias, net[2].running_mean, net[2].running_var):
            tensor[unit] = tensor[5]
    net[2].running_mean[[2, 5, 8]] = 0  # a scale then says nothing of the offset
    (net[2].weight if way == "scale" else net[2].bias)[2] += 1  # so 8 is left
    whole = net(x)
    criterion: Any = replace(CRITERIA["srinivas_babu"], function=sixth)
    assert sc.prune(net, 1 / 12, **call(x, criterion)).unit_masks["0.weight"].tolist().index(False) == 5
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-10)


class Twice(nn.Module):
    """What a layer makes goes through its norm, and another way besides."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.way = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 3), way
        self.other = nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        made = self.a(x)
        ways: dict[str, Callable[[], Tensor]] = {
            "called twice": lambda: self.norm(self.a(2 * x)),
            "past the norm": lambda: made,
            "others through the norm": lambda: self.norm(F.leaky_relu(self.other(x))),
            "unseen": lambda: F.linear(2 * x, self.a.weight, self.a.bias),
        }
        return self.b(F.relu(self.norm(made))) + self.b(F.relu(ways[self.way]()))


def twice(way: str) -> tuple[Any, Tensor]:
    torch.manual_seed(2)
    net = Twice(way).double().eval()
    random_norms(net)
    return net, torch.randn(7, 6).double()


@pytest.mark.parametrize("way", ["called twice", "unseen"])
def test_a_layer_called_twice_merges_and_one_whose_weights_are_used_past_its_norm_is_refused(way: str) -> None:
    net, x = twice(way)
    plant(net.a, net.norm, SCALED)
    whole = net(x)
    if way == "unseen":
        with pytest.raises(ValueError, match=r"units of 'a.weight' cannot take over.*exclude=\['a.weight'\]"):
            sc.prune(net, 4 / 12, **call(x))
        assert sc.find_masks(net) is None
    else:
        sc.prune(net, 4 / 12, **call(x))
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("way", ["past the norm", "others through the norm"])
def test_a_norm_of_a_layer_that_goes_elsewhere_too_has_to_treat_both_alike(way: str) -> None:
    net, x = twice(way)
    for copied, (original, factor) in SCALED.items():
        net.norm.weight[copied], net.norm.running_var[copied] = (
            net.norm.weight[original],
            net.norm.running_var[original],
        )
        layers = (net.a.weight, net.a.bias, net.other.weight, net.other.bias)
        for tensor in (*layers, net.norm.bias, net.norm.running_mean):
            tensor[copied] = factor * tensor[original]
    whole = net(x)
    sc.prune(net, 4 / 12, **call(x))
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-10)


class Shared(nn.Module):
    """Norms that read a sum of layers, and several layers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.inner, self.back = (
            nn.Linear(6, 12),
            nn.BatchNorm1d(12),
            nn.Linear(12, 5),
            nn.Linear(5, 12),
        )
        self.other, self.last, self.head = nn.Linear(6, 4), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        past = self.stem(x)
        past = past + self.back(F.relu(self.inner(F.relu(self.norm(past)))))
        return self.head(F.relu(self.last(torch.cat([self.other(x), past], 1))))


@torch.no_grad()
def test_norms_of_a_stream_and_of_layers_side_by_side() -> None:
    torch.manual_seed(4)
    net, x = Shared().double().eval(), torch.randn(7, 6).double()
    random_norms(net)
    for copied, (original, factor) in SCALED.items():
        for layer in (net.stem, net.back):
            layer.weight[copied], layer.bias[copied] = factor * layer.weight[original], factor * layer.bias[original]
        for norm, first in ((net.norm, 0), (net.last, 4)):
            one, two = first + copied, first + original
            norm.weight[one], norm.running_var[one] = norm.weight[two], norm.running_var[two]
            norm.bias[one], norm.running_mean[one] = factor * norm.bias[two], factor * norm.running_mean[two]
    whole = net(x)
    masks = sc.prune(net, 4 / 12, targets="stem", **call(x))
    kept = masks.unit_masks["stem.weight"]
    assert int(kept[[2, 7, 9]].sum()) == int(kept[[5, 11]].sum()) == int(kept[[0, 3]].sum()) == 1
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(sc.shrink(net, example_inputs=x)(x), whole, rtol=0, atol=1e-10)
