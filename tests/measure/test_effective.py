"""Effective compression against an enumeration of all paths, and the chains it can read."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.measure import effective
from secateur.measure.chain import chain_of


def on_paths(masks: list[Tensor]) -> int:
    """Walk every path through a chain of [out, in] masks and collect the weights met on the way."""
    met: set[tuple[int, int, int]] = set()
    widths = [masks[0].shape[1], *(m.shape[0] for m in masks)]
    for path in itertools.product(*(range(w) for w in widths)):
        edges = [(layer, path[layer + 1], path[layer]) for layer in range(len(masks))]
        if all(bool(masks[layer][o, i]) for layer, o, i in edges):
            met.update(edges)
    return len(met)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_linear_chains_equal_the_enumeration_of_paths(widths: list[int], seed: int, density: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    pairs = list(itertools.pairwise(widths))
    net = nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in pairs))
    masks = [torch.rand(o, i, generator=rng) < density for i, o in pairs]
    found = effective(net, {f"{k}.weight": m for k, m in enumerate(masks)})
    assert found.effective == on_paths(masks)
    assert found.direct == sum(int(m.sum()) for m in masks)


class View(nn.Module):
    """Two convolutions and two linear layers, with everything else written in forward."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, groups=groups)
        self.fc, self.out = nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 2)
        x = torch.relu(self.conv2(x))
        return self.out(torch.relu(self.fc(x.view(x.size(0), -1))))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("seed", "density"), [(0, 0.09), (1, 0.09), (2, 0.09), (3, 0.07), (4, 0.1)])
def test_convolutions_equal_gradients_of_a_positive_network(groups: int, seed: int, density: float) -> None:
    """A weight of an all-positive linear network is on a path iff the sum of outputs depends on it."""
    rng = torch.Generator().manual_seed(seed)
    net = View(groups)
    names = ("conv1.weight", "conv2.weight", "fc.weight", "out.weight")
    shapes = {name: net.get_parameter(name).shape for name in names}
    scale = {name: 1 if len(shape) == 4 else 3 for name, shape in shapes.items()}  # a kernel has nine chances
    masks = {name: torch.rand(shape, generator=rng) < density * scale[name] for name, shape in shapes.items()}
    w1, w2, w3, w4 = (masks[name].double().requires_grad_() for name in names)
    # Circular padding: every kernel position meets every channel's values, so no weight is lost at a border.
    x = F.conv2d(F.pad(torch.ones(1, 2, 6, 6).double(), (1, 1, 1, 1), mode="circular"), w1)
    x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), w2, groups=groups)
    F.linear(F.linear(x[:, :, :2, :2].flatten(1), w3), w4).sum().backward()
    alive = sum(int(((w.grad != 0) & masks[name]).sum()) for name, w in zip(names, (w1, w2, w3, w4), strict=True))
    found = effective(net, masks)
    assert found.effective == alive
    assert 0 < alive < found.direct  # else this network would prove nothing


def test_flattened_channels_stand_one_after_the_other() -> None:
    layers = (nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False))
    masks = {
        "0.weight": torch.tensor([1, 0]).view(2, 1, 1, 1),  # features 0 and 1 live, 2 and 3 are dead
        "2.weight": torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0]]),
        "3.weight": torch.tensor([[1, 0], [1, 1]]),
    }
    found = effective(nn.Sequential(*layers), masks)
    assert (found.direct, found.effective) == (6, 1 + 1 + 2)


def test_biases_and_norms_count_with_units_on_a_path() -> None:
    net = View()
    mask = torch.ones(4, 2, 3, 3, dtype=torch.bool)
    mask[1:] = False  # one channel of the first convolution is left
    found = effective(net, {"conv1.weight": mask})
    assert found.effective == 18 + 4 * 9 + 80 + 15
    assert found.parameters == found.effective + 2 * 1 + 4 + 5 + 3  # norm of one channel, biases of conv2, fc and out


def test_a_dense_chain_is_all_effective() -> None:
    net = View()
    assert effective(net).parameters == sum(p.numel() for p in net.parameters())


def test_nothing_left_is_infinite_compression() -> None:
    found = effective(nn.Linear(2, 2), {"weight": torch.zeros(2, 2)})
    assert (found.effective, found.effective_compression, found.direct_compression) == (0, torch.inf, torch.inf)


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x + self.a(x))


class Asks(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else self.b(x)


class Two(Skip):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x)


class Twice(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(F.relu(self.a(x)))


class Matmul(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.a(x), -1)


NO_CHAINS = [
    (Skip(), "join or branch"),
    (Asks(), "traced"),
    (Two(), "several inputs"),
    (Twice(), "called twice"),
    (Matmul(), "softmax"),
    (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "LayerNorm"),
    (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 4)), "not clear"),
    (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(18, 4)), "not clear"),
    (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 4)), "normalises"),
    (nn.Sequential(nn.ReLU()), "no linear layer"),
]


@pytest.mark.parametrize(("net", "says"), NO_CHAINS, ids=[says for _, says in NO_CHAINS])
def test_what_is_no_plain_chain_gives_none_and_a_reason(net: nn.Module, says: str) -> None:
    found = effective(net)
    assert (found.effective, found.parameters, found.effective_compression) == (None, None, None)
    assert found.reason is not None
    assert says in found.reason
    assert found.direct == found.weights


def test_nested_sequentials_are_followed_by_name() -> None:
    links = chain_of(nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Tanh()), nn.Linear(3, 1)))
    assert [link.weight for link in links] == ["0.0.weight", "1.weight"]
