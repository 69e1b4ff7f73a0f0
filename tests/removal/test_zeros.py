"""Zeros from anywhere become removal: the smaller network returns what the network with the zeros returned.

How many units have to go is worked out by hand in each test.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.model.graph.examples import as_examples
from secateur.model.graph.groups import find_groups
from secateur.model.graph.zeros import dead_units, remove_dead
from secateur.model.removal import remove
from tests.removal.traced_nets import Made, seeded
from tests.removal.zeros_judge import X, conv_net, filter_off, gap, gone, image, mlp, shrunk, zero


def test_what_nothing_reads_goes() -> None:
    net = seeded(lambda: mlp(4, 6, 3))
    zero(net, "2.weight", (slice(None), [1, 4]))
    small, dead = shrunk(net, X)
    assert gone(dead, "0.weight") == [1, 4]
    assert small[0].weight.shape == (4, 4)
    assert not dead.edits


def test_what_is_made_of_nothing_goes() -> None:
    net = seeded(lambda: mlp(4, 6, 3))
    zero(net, "0.weight", 2)
    zero(net, "0.bias", 2)
    _, dead = shrunk(net, X)
    assert gone(dead, "0.weight") == [2]
    assert not dead.edits


def test_a_chain_of_dead_units_unravels_in_both_directions() -> None:
    net = seeded(lambda: mlp(4, 6, 6, 6, 3))
    with torch.no_grad():
        # Unit 0 of the last layer is read by nothing; it is all that reads unit 0 of the layer before, and so on.
        net[6].weight[:, 0] = 0
        net[4].weight[1:, 0] = 0
        net[2].weight[1:, 0] = 0
        # Unit 5 of the first layer is nothing; it is all that unit 5 of the next reads, and so on.
        net[0].weight[5], net[0].bias[5] = 0, 0
        net[2].weight[5, :5], net[2].bias[5] = 0, 0
        net[4].weight[5, :5], net[4].bias[5] = 0, 0
    small, dead = shrunk(net, X)
    assert [gone(dead, f"{layer}.weight") for layer in (0, 2, 4)] == [[0, 5]] * 3
    assert [layer.out_features for layer in small if isinstance(layer, nn.Linear)] == [4, 4, 4, 3]
    assert dead.rounds == 2  # one look follows a chain to both ends, the other finds nothing new


def test_scales_of_zero_are_removed() -> None:
    net = seeded(conv_net(1))
    zero(net, "1.weight", [0, 3])
    with torch.no_grad():
        net[1].bias[0], net[1].bias[3], net[1].bias[5] = 0.0, -1.0, 0.0
    _, dead = shrunk(net, image())
    assert gone(dead, "0.weight") == [0, 3]


def test_a_layer_that_is_dead_as_a_whole_keeps_one_unit_and_is_named() -> None:
    net = seeded(lambda: mlp(4, 6, 5, 3))
    zero(net, "2.weight", slice(None))
    zero(net, "2.bias", slice(None))
    small, dead = shrunk(net, X)
    assert [layer.out_features for layer in small if isinstance(layer, nn.Linear)] == [1, 1, 3]
    assert set(dead.whole) == {"0.weight", "2.weight"}
    assert "dead as a whole" in str(dead)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.two(F.relu(self.norm1(self.one(x))))))


def residual() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_a_stream_channel_needs_all_of_its_producers() -> None:
    net = seeded(residual)
    zero(net, "0.weight", 1)
    zero(net, "0.bias", 1)
    zero(net, "1.norm2.weight", 1)
    zero(net, "1.norm2.bias", 1)
    _, dead = shrunk(net, image())
    assert gone(dead, "0.weight") == []  # the second block still writes to it
    zero(net, "2.norm2.weight", 1)
    zero(net, "2.norm2.bias", 1)
    small, dead = shrunk(net, image())
    assert gone(dead, "0.weight") == [1]
    assert small[5].in_features == 3


def test_a_dead_residual_branch_loses_its_inside() -> None:
    net = seeded(residual)
    zero(net, "2.norm2.weight", slice(None))
    zero(net, "2.norm2.bias", slice(None))
    small, dead = shrunk(net, image())
    assert dead.whole == ("2.one.weight",)
    assert small[2].one.out_channels == 1
    assert small[1].one.out_channels == 6


def test_option_a_shortcuts_shift_the_channels() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        wide = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = F.relu(wide + self.after(self.inner(x)))
        return self.out(x.mean((2, 3)))

    def make() -> nn.Module:
        return Made(
            forward,
            first=nn.Conv2d(3, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
            inner=nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1, bias=False)),
            after=nn.BatchNorm2d(8),
            out=nn.Linear(8, 2),
        )

    net = seeded(make)
    zero(net, "inner.2.weight", (slice(None), [0, 5]))
    zero(net, "inner.0.weight", 3)
    with torch.no_grad():
        net.inner[0].bias[3] = -1.0
    _, dead = shrunk(net, image())
    assert gone(dead, "inner.0.weight") == [0, 3, 5]


def test_a_gate_of_zero_makes_the_gated_unit_dead() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down(self.up(x) * F.silu(self.gate(x)))

    net = seeded(lambda: Made(forward, up=nn.Linear(4, 6), gate=nn.Linear(4, 6), down=nn.Linear(6, 2)))
    zero(net, "gate.weight", 3)
    zero(net, "gate.bias", 3)
    _, dead = shrunk(net, X)
    assert [gone(dead, name) for name in dead.keep] == [[3]]


def test_what_leaves_torch_is_read() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        inner = F.relu(self.first(x))
        return self.out(inner) + torch.from_numpy(inner.detach().numpy().copy()).sum(1, keepdim=True)

    net = seeded(lambda: Made(forward, first=nn.Linear(4, 6), out=nn.Linear(6, 2)))
    zero(net, "out.weight", (slice(None), 1))
    dead = dead_units(net, find_groups(net, X, verify=False), as_examples(X))
    assert dead.count == 0


def test_edit_and_remove_make_the_same_of_the_model_itself() -> None:
    net = seeded(conv_net(0))
    filter_off(net, 2, 0.7)
    before, weight = copy.deepcopy(net), net[3].bias
    _, removal, dead = remove_dead(net, find_groups(net, image()), as_examples(image()))
    dead.edit(net)
    remove(net, removal)
    assert gap(before, net, image()) < 1e-10
    assert net[3].bias is weight


def pruned(unit: str) -> list[nn.Module]:
    """A CNN and an MLP, masked by the library itself at 95 % (filters at 60 %)."""
    nets = [seeded(conv_net(1), 1), seeded(lambda: mlp(4, 24, 24, 3), 2)]
    for net in nets:
        sparsity = {"weight": 0.95, "filter": 0.6}.get(unit, 0.9)
        sc.prune(net, sparsity, unit=unit, allocation="global" if unit == "weight" else "uniform")
    return nets


@pytest.mark.parametrize("unit", ["weight", "filter", "kernel"])
def test_masks_of_any_unit_leave_dead_units(unit: str) -> None:
    counts = list[int]()
    for net, x in zip(pruned(unit), (image(), X), strict=True):
        _, dead = shrunk(net, x)
        counts.append(dead.count)
    assert counts[1] > 0, counts
