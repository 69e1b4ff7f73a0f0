"""Contributions of input channels and what is made of them, against loops over places and subsets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.core.units import parse_unit
from secateur.model.evidence import Source, collect
from secateur.model.group_targets import find_layout
from secateur.model.scale_kept import scale_kept


class Chain(nn.Module):
    """A reader with one output, so that what is sampled is known: 2 x 2 places, all of them among ten."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 5, 1), nn.Conv2d(5, 1, 3, stride=2, padding=1)
        self.head = nn.Linear(4, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(F.relu(self.first(x))).flatten(1))


def data(count: int = 8) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def contributions(net: Chain, x: Tensor) -> Tensor:
    """[samples, channels]: the output of the reader with one channel at a time."""
    with torch.no_grad():
        a = F.relu(net.first(x))
        rows = []
        for channel in range(5):
            alone = torch.zeros_like(a)
            alone[:, channel] = a[:, channel]
            rows.append((net.second(alone) - net.second.bias[:, None, None]).flatten())
        return torch.stack(rows, 1)


def greedy(x: Tensor) -> list[int]:
    """The definition, from the contributions themselves."""
    removed: list[int] = []
    while len(removed) < x.shape[1]:
        left = [c for c in range(x.shape[1]) if c not in removed]
        removed.append(min(left, key=lambda c: float(x[:, [*removed, c]].sum(1).square().sum())))
    return removed


@pytest.mark.parametrize("unit", ["channel", "in_channel"])
def test_contributions_are_what_single_channels_add(unit: str) -> None:
    net, x = Chain(), data()
    parsed = parse_unit(unit)[0]
    example = x if unit == "channel" else None
    layout = find_layout(net, "first" if example is not None else "second", None, parsed, example)
    found = collect(net, ["contribution_gram"], layout, parsed, Source([x[:5], x[5:]], batches=2))
    slow = contributions(net, x)
    ((name, gram),) = found["contribution_gram"].items()
    assert name == ("first.weight" if unit == "channel" else "second.weight")
    torch.testing.assert_close(gram, slow.t() @ slow)


def test_the_removed_set_grows_greedily() -> None:
    net, x = Chain(), data()
    scores = sc.score(net, "thinet", unit="channel", targets="first", data=[x], example_inputs=x)["first.weight"]
    assert scores.argsort().tolist() == greedy(contributions(net, x))


def test_two_that_undo_each_other_go_together() -> None:
    """Unit 1 is -1.5 times unit 0: both together change less than either of the others would, though it is largest."""
    net = nn.Linear(4, 1, bias=False).double()
    nn.init.ones_(net.weight)
    own = torch.linalg.qr(torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    x = torch.stack([own[:, 0], -1.5 * own[:, 0], 1.05 * own[:, 1], 1.1 * own[:, 2]], 1)
    assert x.square().sum(0).argsort().tolist() == [0, 2, 3, 1]
    sc.prune(net, 0.5, criterion="thinet", unit="in_channel", data=[x])
    assert net.weight.tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_factors_of_the_kept_are_least_squares() -> None:
    net, x = Chain(), data()
    dense = contributions(net, x)
    old = {name: value.clone() for name, value in net.state_dict().items()}
    masks = sc.prune(net, 2 / 5, criterion="thinet", unit="channel", targets="first", data=[x], example_inputs=x)
    kept = masks.unit_masks["first.weight"]
    found = scale_kept(masks, [x])["first.weight"]
    slow = torch.linalg.lstsq(dense[:, kept], dense.sum(1, keepdim=True)).solution.flatten()
    torch.testing.assert_close(found[kept], slow, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net.second.weight[:, kept], old["second.weight"][:, kept] * found[kept][:, None, None])
    assert not bool(net.second.weight[:, ~kept].any())
    scaled = net.second.weight.clone()
    torch.testing.assert_close(scale_kept(masks, [x])["first.weight"], found)  # of the dense model, not of this one
    assert torch.equal(net.second.weight, scaled)
    masks.undo()
    assert all(torch.equal(value, old[name]) for name, value in net.state_dict().items())


def test_a_flattened_channel_is_one_unit_and_other_readers_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 1)).double()
    x = data()
    scores = sc.score(net, "thinet", unit="channel", data=[x], example_inputs=x)["0.weight"]
    with torch.no_grad():
        own = (net[:3](x) * net[3].weight).view(8, 3, 16).sum(2)
    assert scores.argsort().tolist() == greedy(own)
    with pytest.raises(ValueError, match="contributions are of input channels"):
        sc.score(net, "thinet", unit="filter", data=[x])
    turned = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ConvTranspose2d(3, 2, 1)).double()
    with pytest.raises(ValueError, match=r"'1\.weight' .* ConvTranspose2d"):
        sc.score(turned, "thinet", unit="in_channel", targets="1", data=[x])


def test_padding_is_no_place() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.outer(F.relu(self.inner(x)))

    torch.manual_seed(0)
    net = Tokens().double()
    x = torch.randn(3, 6, 3, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]])
    x[mask == 0] *= 1000
    parsed = parse_unit("in_channel")[0]
    layout = find_layout(net, "outer", None, parsed, None)
    found = collect(net, ["contribution_gram"], layout, parsed, Source({"x": x, "attention_mask": mask}))
    with torch.no_grad():
        own = F.relu(net.inner(x))[mask == 1] * net.outer.weight
    torch.testing.assert_close(found["contribution_gram"]["outer.weight"], own.t() @ own)


class Joined(nn.Module):
    """One layer that reads two groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([F.relu(self.left(x)), torch.tanh(self.right(x))], 1))


def test_one_layer_that_reads_two_groups_is_scaled_for_both() -> None:
    net, x = Joined(), torch.randn(40, 4, dtype=torch.float64)
    dense = net.head.weight.detach().clone()
    masks = sc.prune(net, 0.5, criterion="thinet", unit="channel", data=[x], example_inputs=x)
    found = scale_kept(masks, [x])
    factors = torch.cat([found["left.weight"], found["right.weight"]])
    assert int((factors == 0).sum()) == 4
    torch.testing.assert_close(net.head.weight.detach(), dense * factors)
