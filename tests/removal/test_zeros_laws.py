"""Whatever is zero, the outputs never change; and in plain networks exactly the units on no live path go.

The oracle of the second law knows sets and loops only: a unit counts if a path of weights other than zero leads from an
input to it, and one from it to an output (effective sparsity, Vysogorets and Kempe 2021).
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.model.graph.examples import as_examples
from secateur.model.graph.groups import find_groups
from secateur.model.graph.probe import outputs_of
from secateur.model.graph.zeros import remove_dead
from secateur.model.names import unwrap
from tests.removal.traced_nets import Made, seeded
from tests.removal.zeros_judge import X, gap, image, mlp, shrunk
from tests.removal.zoo.table import ARCHITECTURES


def live_units(net: nn.Sequential) -> list[set[int]]:
    """Of each layer the outputs on a path from an input to an output."""
    weights = [layer.weight for layer in net if isinstance(layer, nn.Linear)]
    reached = [set(range(weights[0].shape[1]))]
    for weight in weights:
        reached.append({o for o in range(weight.shape[0]) for i in reached[-1] if weight[o, i] != 0})
    wanted = [set(range(weights[-1].shape[0]))]
    for weight in reversed(weights):
        wanted.insert(0, {i for i in range(weight.shape[1]) for o in wanted[0] if weight[o, i] != 0})
    return [a & b for a, b in zip(reached, wanted, strict=True)]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.8, 0.95]), st.sampled_from([0.0, 0.5, 1.0]))
def test_exactly_what_is_on_no_path_goes(seed: int, share: float, biases: float) -> None:
    net = seeded(lambda: mlp(4, 5, 4, 5, 2))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight[torch.rand(layer.weight.shape, generator=draw) < share] = 0
                layer.bias[torch.rand(layer.bias.shape, generator=draw) < biases] = 0
        for layer in (net[2], net[4], net[6]):  # a constant that the ReLU cuts off is not read, which no set tells
            layer.bias.abs_()
        net[0].bias.abs_()
    small, _ = shrunk(net, X)
    widths = [layer.out_features for layer in small if isinstance(layer, nn.Linear)]
    # A weight beside a constant that cancels it is no path either, but that has no chance here.
    assert widths[:-1] == [max(1, len(live)) for live in live_units(net)[1:-1]]


def _norms(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.norm1(self.first(x)))
    y = self.norm2(self.two(F.hardswish(self.one(x))))
    z = self.grouped(torch.cat([F.relu(x + y), y], 1))
    return self.out(F.max_pool2d(F.relu(z), 2).flatten(1))


def _make_norms() -> nn.Module:
    return Made(
        _norms,
        first=nn.Conv2d(3, 4, 3, padding=1, bias=False),
        norm1=nn.BatchNorm2d(4),
        one=nn.Conv2d(4, 6, 1),
        two=nn.Conv2d(6, 4, 3, padding=1, bias=False),
        norm2=nn.BatchNorm2d(4),
        grouped=nn.Conv2d(8, 6, 3, groups=2),
        out=nn.Linear(6 * 4, 3),
    )


def spoil(net: nn.Module, seed: int) -> None:
    """Rows, columns and single weights of every parameter at zero, each parameter with shares of its own."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            for axis in range(min(parameter.dim(), 2)):
                share = float(torch.rand(1, generator=draw)) * 0.7
                rows = torch.nonzero(torch.rand(parameter.shape[axis], generator=draw) < share).reshape(-1)
                parameter.index_fill_(axis, rows, 0.0)
            share = float(torch.rand(1, generator=draw)) * 0.5
            parameter[torch.rand(parameter.shape, generator=draw) < share] = 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_zeros_never_change_the_outputs(seed: int) -> None:
    net = seeded(_make_norms)
    spoil(net, seed)
    small, _ = shrunk(net, image())
    assert gap(net, small, image()) < 1e-10


NAMES = """
    resnet_option_a preactivation dense_concat unet squeeze_excite cbam channel_shuffle pixel_shuffle convnext
    group_norm_residual module_called_twice tied_language_model einsum depthwise_multiplier gru lstm_cell
    grouped_query_attention multihead_attention transformer_encoder_pre swiglu_chunk swiglu_glu rms_norm swin
"""


@pytest.mark.parametrize("name", NAMES.split())
def test_random_zeros_never_change_the_outputs_of_any_architecture(name: str) -> None:
    row = next(one for one in ARCHITECTURES if one.name == name)
    net = unwrap(row.make()).double()
    x = row.inputs(2)
    if isinstance(x, tuple):
        x = tuple(one.double() if one.is_floating_point() else one for one in x)
    elif isinstance(x, Tensor) and x.is_floating_point():
        x = x.double()
    examples, groups, gone = as_examples(x), find_groups(net, x, verify=False), 0
    for seed in range(2):
        spoiled = copy.deepcopy(net)
        spoil(spoiled, seed)
        small, _, dead = remove_dead(spoiled, groups, examples)
        gone += dead.count
        for before, after in zip(outputs_of(spoiled, examples[0]), outputs_of(small, examples[0]), strict=True):
            scale = before.double().abs().max().clamp(min=1.0)
            assert float((before.double() - after.double()).abs().max() / scale) < 1e-10
    assert gone > 0
