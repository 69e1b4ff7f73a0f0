"""Channels that hold one value whatever the input: taken up where that is exact, kept and named where it is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.removal.traced_nets import Made, seeded
from tests.removal.zeros_judge import X, conv_net, filter_off, gap, gone, image, mlp, shrunk, zero


def test_a_constant_is_taken_up_along_a_chain() -> None:
    net = seeded(lambda: mlp(4, 6, 5, 3))
    with torch.no_grad():
        net[0].weight[1] = 0
        net[0].bias[1] = 2.0
        net[2].weight[3, [0, 2, 3, 4, 5]] = 0  # reads that constant alone, so is one itself
        net[2].weight[3, 1] = 1.5
        net[2].bias[3] = 0.25
    small, dead = shrunk(net, X)
    assert gone(dead, "0.weight") == [1]
    assert gone(dead, "2.weight") == [3]
    constant = 1.5 * 2.0 + 0.25
    with torch.no_grad():
        assert torch.allclose(small[4].bias, net[4].bias + constant * net[4].weight[:, 3], rtol=1e-12)
    assert dead.folded == {"0.weight": 1, "2.weight": 1}
    assert dead.rounds == 3  # constants taken up, what made them, nothing new


def test_constants_can_be_left_alone() -> None:
    net = seeded(lambda: mlp(4, 6, 3))
    zero(net, "0.weight", 1)
    with torch.no_grad():
        net[0].bias[1] = 1.0
    _, dead = shrunk(net, X, constants=False)
    assert dead.count == 0
    assert not dead.edits


def test_a_masked_filter_without_padding_is_taken_up() -> None:
    net = seeded(conv_net(0))
    filter_off(net, 2, 0.7)
    small, dead = shrunk(net, image())
    assert gone(dead, "0.weight") == [2]
    assert list(dead.edits) == ["3.bias"]
    with torch.no_grad():
        expected = net[3].bias + 0.7 * net[3].weight[:, 2].sum((1, 2))
    assert torch.allclose(small[3].bias, expected, atol=1e-12)


def test_zero_padding_keeps_the_constant_and_says_so() -> None:
    net = seeded(conv_net(1))
    filter_off(net, 2, 0.7)
    _, dead = shrunk(net, image())
    assert dead.count == 0
    assert dead.reasons == {
        "0.weight": "1 of 6 channels are constant and stay: it is read by a convolution with zero padding, "
        "whose border would change"
    }
    assert "zero padding" in str(dead)


def test_with_zero_padding_a_fold_would_be_wrong_at_the_border() -> None:
    """The catalogue's numbers: exact inside, off by tenths at the border, so that refusing is no mere caution."""
    net = seeded(conv_net(1))
    filter_off(net, 2, 0.7)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    wrong = copy.deepcopy(net)
    with torch.no_grad():
        wrong[3].bias += 0.7 * wrong[3].weight[:, 2].sum((1, 2))
        wrong[3].weight[:, 2] = 0
        off = (net[:4](x) - wrong[:4](x)).abs().amax((0, 1))
    assert off[1:-1, 1:-1].max() < 1e-12
    assert off.max() > 0.05


def test_a_kernel_that_sums_to_zero_still_has_a_border() -> None:
    net = seeded(conv_net(1))
    filter_off(net, 2, 0.7)
    with torch.no_grad():
        net[3].weight[:, 2] -= net[3].weight[:, 2].mean((1, 2), keepdim=True)
        net[3].weight[:, 2, 1, 1] -= net[3].weight[:, 2].sum((1, 2))
    _, dead = shrunk(net, image())
    assert dead.count == 0


def test_a_masked_filter_whose_constant_the_relu_cuts_off_goes_under_padding_too() -> None:
    net = seeded(conv_net(1))
    filter_off(net, 2, -0.7)
    _, dead = shrunk(net, image())
    assert gone(dead, "0.weight") == [2]
    assert not dead.edits


def test_without_a_bias_the_running_mean_takes_it_up() -> None:
    net = seeded(conv_net(0, bias=False, norm=True))
    filter_off(net, 4, 0.7)
    small, dead = shrunk(net, image())
    assert gone(dead, "0.weight") == [4]
    with torch.no_grad():
        expected = net[4].running_mean - 0.7 * net[3].weight[:, 4].sum((1, 2))
    assert torch.allclose(small[4].running_mean, expected, atol=1e-12)


def test_without_bias_and_norm_it_stays() -> None:
    net = seeded(conv_net(0, bias=False))
    filter_off(net, 4, 0.7)
    _, dead = shrunk(net, image())
    assert dead.count == 0
    assert "without a bias that no batch norm follows" in dead.reasons["0.weight"]


def test_a_norm_that_something_else_reads_too_takes_nothing_up() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        inner = self.second(F.relu(self.norm(self.first(x))))
        return self.out(torch.cat([self.after(inner), torch.sigmoid(inner)], 1).mean((2, 3)))

    def make() -> nn.Module:
        return Made(
            forward,
            first=nn.Conv2d(3, 4, 3),
            norm=nn.BatchNorm2d(4),
            second=nn.Conv2d(4, 5, 1, bias=False),
            after=nn.BatchNorm2d(5),
            out=nn.Linear(10, 2),
        )

    net = seeded(make)
    zero(net, "norm.weight", 1)
    with torch.no_grad():
        net.norm.bias[1] = 1.0
    _, dead = shrunk(net, image())
    assert dead.count == 0


def test_a_layer_that_is_constant_as_a_whole_is_taken_up_once() -> None:
    net = seeded(lambda: mlp(4, 6, 5, 3))
    zero(net, "0.weight", slice(None))
    small, _ = shrunk(net, X)
    assert [layer.out_features for layer in small if isinstance(layer, nn.Linear)] == [1, 1, 3]
    with torch.no_grad():
        assert torch.allclose(small[4].bias, net(X)[0], rtol=1e-12)  # all that the network computes


def test_a_pad_of_its_own_is_zero_padding_too() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.out(F.relu(self.second(F.pad(F.relu(self.first(x)), (1, 1, 1, 1)))).mean((2, 3)))

    def make() -> nn.Module:
        return Made(forward, first=nn.Conv2d(3, 4, 3), second=nn.Conv2d(4, 5, 3), out=nn.Linear(5, 2))

    net = seeded(make)
    zero(net, "first.weight", 0)
    with torch.no_grad():
        net.first.bias[0] = 1.0
    _, dead = shrunk(net, image())
    assert dead.count == 0


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_the_constant_itself_is_exact(mode: str) -> None:
    def make() -> nn.Module:
        second = nn.Conv2d(4, 5, 3, padding=1, padding_mode=mode)  # pyright: ignore[reportArgumentType]
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), second, nn.Flatten(), nn.Linear(5 * 16, 2))

    net = seeded(make)
    zero(net, "0.weight", 0)
    with torch.no_grad():
        net[0].bias[0] = 1.0
    small, dead = shrunk(net, image())
    assert gone(dead, "0.weight") == [0]
    assert small[2].in_channels == 3


def test_what_depends_on_the_size_of_the_image_is_no_constant() -> None:
    """A border makes the mean of a constant map depend on how large the map is: two sizes have to agree."""
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 2),
        )
    )
    zero(net, "0.weight", slice(None))
    with torch.no_grad():
        net[0].bias.fill_(1.0)
    for size in (1, 6):  # at size 1 the map is all border, and looks even
        small, _ = shrunk(net, image(size))
        for other in (3, 9):
            assert gap(net, small, image(other)) < 1e-10


@pytest.mark.parametrize("end", ["a pad", "a sum", "a mean of a border"])
def test_numbers_that_count_places_are_no_constants(end: str) -> None:
    """How many places there are, and how many of them lie at a border, changes with the size of the input."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if end == "a pad":
            x = self.second(F.pad(x, (1, 1, 1, 1))).mean((2, 3))
        elif end == "a sum":
            x = x.sum((2, 3))
        else:
            x = F.avg_pool2d(x, 3, 1, 1).mean((2, 3))
        return self.out(x)

    def make() -> nn.Module:
        return Made(forward, first=nn.Conv2d(3, 4, 1), second=nn.Conv2d(4, 4, 3), out=nn.Linear(4, 2))

    net = seeded(make)
    zero(net, "first.weight", 0)
    zero(net, "second.weight", (0, [1, 2, 3]))
    with torch.no_grad():
        net.first.bias[0] = 1.0
    for size in (1, 6):  # at size 1 everything is border
        small, dead = shrunk(net, image(size))
        assert gap(net, small, image(9)) < 1e-10
        assert dead.count == 0


def test_a_bias_that_serves_two_layers_takes_nothing_up() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.cat([self.one(F.relu(self.first(x))), self.two(x)], 1)

    def make() -> nn.Module:
        net = Made(forward, first=nn.Linear(4, 5), one=nn.Linear(5, 2), two=nn.Linear(4, 2))
        net.two.bias = net.one.bias
        return net

    net = seeded(make)
    zero(net, "first.weight", 3)
    with torch.no_grad():
        net.first.bias[3] = 1.0
    _, dead = shrunk(net, X)
    assert dead.count == 0
    assert "also serves something" in dead.reasons["first.weight"]


def test_a_layer_called_twice_has_to_read_the_same_constant() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.out(x) + self.out(x + self.shift)

    def make() -> nn.Module:
        return Made(forward, first=nn.Linear(4, 5), out=nn.Linear(5, 2), shift=nn.Parameter(torch.zeros(5)))

    net = seeded(make)
    zero(net, "first.weight", [1, 3])
    with torch.no_grad():
        net.first.bias[[1, 3]] = 1.0
        net.shift[3] = 0.0
    _, dead = shrunk(net, X)
    assert gone(dead, "first.weight") == [3]
    assert "different constants" in dead.reasons["first.weight"]
