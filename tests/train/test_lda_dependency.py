"""The way down of linear discriminant analysis, against a float64 loop over single examples by autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc

F64 = torch.float64


def network(inplace: bool = True) -> nn.Sequential:
    """Batch norm, an activation in place, a smooth one, groups; the top is the third convolution."""
    torch.manual_seed(0)
    first = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace), nn.MaxPool2d(2)]
    second = [nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.GELU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(inplace)]
    net = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(20, 3)).double()
    with torch.no_grad():
        net[1].running_mean.uniform_(-0.5, 0.5)
        net[1].weight.uniform_(0.5, 1.5)
    return net


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 2, 4, 4, generator=g, dtype=F64), torch.randint(0, 3, (n,), generator=g)) for n in sizes]


DATA = batches(6, 3)
BEHIND = {"0.weight": 3, "4.weight": 6, "6.weight": 8}
"""Layer -> how many modules its activation is behind."""


def icc(x: Tensor, y: Tensor) -> Tensor:
    """S_b / (S_b + S_w + ridge mean S_w) of ``[N, C]``."""
    between, within = torch.zeros(x.shape[1], dtype=F64), torch.zeros(x.shape[1], dtype=F64)
    for c in y.unique():
        own = x[y == c]
        between += len(own) * (own.mean(0) - x.mean(0)).square()
        within += (own - own.mean(0)).square().sum(0)
    found = between / (between + within + 1e-6 * within.mean())
    return torch.where((x == x[:1]).all(0), 0.0, found)


def pooled(a: Tensor, pool: str) -> Tensor:
    """Over all but examples and channels."""
    return a.flatten(2).amax(2) if pool == "max" else a.flatten(2).mean(2)


def unit(values: Tensor) -> Tensor:
    return values / values.norm()


def by_hand(net: nn.Sequential, keep: int, pool: str, top: int = 8) -> tuple[dict[str, Tensor], Tensor]:
    """Scores before they get length 1, and which of the top's units are kept."""
    net = copy.deepcopy(net).eval()
    x, y = torch.cat([x for x, _ in DATA]), torch.cat([y for _, y in DATA])
    values = icc(pooled(net[:top](x), pool).detach(), y)
    kept = torch.zeros(len(values), dtype=torch.bool)
    kept[values.argsort(descending=True)[:keep]] = True
    found = {}
    for name, at in BEHIND.items():
        if at >= top:
            continue
        rows = []
        for n in range(len(x)):
            a = net[:at](x[n : n + 1]).detach().clone().requires_grad_()
            goal = pooled(net[at:top](a + 0), pool)[:, kept].sum()  # + 0: not in place on a leaf
            (slope,) = torch.autograd.grad(goal, a)
            rows.append((a * slope).sum((0, 2, 3)).abs().detach())
        found[name] = torch.stack(rows).mean(0)
    return found, values


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize(("density", "keep"), [(0.6, 3), (0.2, 1), (0.01, 1), (1.0, 5)])
def test_scores_are_a_loop_over_examples(pool: str, density: float, keep: int) -> None:
    spec = f"lda_dependency(top_density={density}, pool={pool!r})"
    found = sc.score(network(), spec, unit="filter", data=DATA, batches=2)
    below, top = by_hand(network(), keep, pool)
    assert set(found) == set(BEHIND)
    torch.testing.assert_close(found["6.weight"], unit(top))
    for name, slow in below.items():
        torch.testing.assert_close(found[name], unit(slow))


def test_channels_of_plain_chains_are_filters_and_coupled_ones_their_mean() -> None:
    spec, x = "lda_dependency(top_density=0.6)", DATA[0][0]
    found = sc.score(network(), spec, unit="channel", data=DATA, batches=2, example_inputs=x)
    below, top = by_hand(network(), 3, "max")
    torch.testing.assert_close(found["6.weight"], unit(top))
    halves = unit(below["4.weight"]).view(2, 3)  # the two groups of the second convolution go together
    torch.testing.assert_close(found["4.weight"], halves.mean(0))


@pytest.mark.parametrize("sparsity", [0.4, 0.8])
def test_pruning_keeps_at_the_top_what_it_looks_down_from(sparsity: float) -> None:
    keep = 5 - int(sparsity * 5 + 0.5)
    net = network()
    masks = sc.prune(
        net, sparsity, criterion="lda_dependency", unit="filter", allocation="uniform", data=DATA, batches=2
    )
    below, top = by_hand(network(), keep, "max")
    for name, slow in {**below, "6.weight": top}.items():
        gone = int(sparsity * len(slow) + 0.5)
        assert set((~masks.unit_masks[name]).nonzero().flatten().tolist()) == set(slow.argsort()[:gone].tolist())
        assert int(masks.unit_masks[name].sum()) == len(slow) - gone


def test_rounds_look_down_from_fewer_units_each_time() -> None:
    """The last of two rounds sees the network as the first one left it, and keeps what is left at the top."""
    how: dict[str, Any] = {"unit": "filter", "allocation": "uniform", "data": DATA, "batches": 2}
    twice, by_steps = network(), network()
    masks = sc.prune(twice, 0.64, criterion="lda_dependency", rounds=2, **how)
    for sparsity in (0.4, 0.64):
        steps = sc.prune(by_steps, sparsity, criterion="lda_dependency", **how)
    assert all(torch.equal(mask, steps.unit_masks[name]) for name, mask in masks.unit_masks.items())


def test_shrinking_and_pruners_know_the_density_too() -> None:
    how: dict[str, Any] = {"criterion": "lda_dependency", "allocation": "uniform"}
    x = DATA[0][0]
    small = sc.shrink(network(), sparsity=0.4, example_inputs=x, data=DATA, batches=2, **how)
    masked = network()
    sc.prune(masked, 0.4, unit="channel", example_inputs=x, data=DATA, batches=2, **how)
    torch.testing.assert_close(small.eval()(x), masked.eval()(x))
    net = network()
    pruner = sc.Pruner(net, sc.Plan(0.4, unit="filter", begin=0, end=0, **how), data=DATA, batches=2)
    pruner.attach(torch.optim.SGD(net.parameters(), lr=0.1))
    pruner.step()
    expected = sc.prune(network(), 0.4, unit="filter", data=DATA, batches=2, **how)
    assert all(torch.equal(mask, expected.unit_masks[name]) for name, mask in pruner.masks.unit_masks.items())


class Planted(nn.Module):
    """Hidden unit i feeds top unit i alone; top 0 and 1 tell classes apart, top 2 is loud and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.top, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        with torch.no_grad():
            for layer, scale in ((self.low, [1.0, 1.0, 9.0]), (self.top, [1.0, 1.0, 9.0])):
                layer.weight.copy_(torch.diag(torch.tensor(scale)))
                layer.bias.fill_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.top(F.relu(self.low(x)))))


def planted_data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    y = torch.arange(60) % 2
    signal = torch.stack([y.float(), 1.0 - y], 1) * 2 + 0.1 * torch.rand(60, 2, generator=g)
    return torch.cat([signal, torch.rand(60, 1, generator=g)], 1), y


@pytest.mark.parametrize("unit", ["filter", "channel"])
def test_a_unit_that_only_feeds_a_discarded_one_goes_first(unit: str) -> None:
    net, (x, y) = Planted(), planted_data()
    how: dict[str, Any] = {"unit": unit, "data": (x, y), "targets": ["low", "top"]}
    how |= {"example_inputs": x[:2]} if unit == "channel" else {}
    found = sc.score(net, "lda_dependency(top_density=0.67)", **how)
    low, top = found["low.weight"], found["top.weight"]
    assert int(top.argmin()) == 2, "it says the same to both classes"
    assert float(low[2]) == 0.0, "nothing that is kept depends on it, loud as it is"
    assert int(sc.score(net, "mean_activation", **how)["low.weight"].argmax()) == 2
    assert float(sc.score(net, "lda_dependency(top_density=1.0)", **how)["low.weight"].argmax()) == 2
    masks = sc.prune(net, 1 / 3, criterion="lda_dependency", allocation="uniform", **how)
    assert [mask.tolist() for mask in masks.unit_masks.values()] == [[True, True, False]] * 2


def test_another_top_is_named_and_what_lies_behind_it_excluded() -> None:
    how: dict[str, Any] = {"unit": "filter", "data": DATA, "batches": 2}
    below, top = by_hand(network(), 3, "max", top=6)
    for name in ("4", "4.weight"):
        found = sc.score(network(), f"lda_dependency(top={name!r}, top_density=0.5)", exclude="6", **how)
        torch.testing.assert_close(found["4.weight"], unit(top))
        torch.testing.assert_close(found["0.weight"], unit(below["0.weight"]))
    with pytest.raises(ValueError, match=r"do not depend on '6\.weight', which is not below it; exclude="):
        sc.score(network(), "lda_dependency(top='4', top_density=0.5)", **how)
    with pytest.raises(ValueError, match=r"top='5'\): no layer among the targets, which are \['0\.weight', "):
        sc.score(network(), "lda_dependency(top='5', top_density=0.5)", **how)


class Residual(nn.Module):
    """A stream of one convolution and two blocks' last ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(2, 4, 1)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)]) for _ in range(2)
        )
        self.head = nn.Linear(4, 3)
        self.double()

    def stream(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for first, second in self.blocks:  # type: ignore[misc]
            out = second(F.relu(first(x)))
            out += x
            x = F.relu(out)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stream(x).mean((2, 3)))


def test_of_a_residual_stream_its_last_layer_speaks() -> None:
    net, x, y = Residual(), torch.cat([x for x, _ in DATA]), torch.cat([y for _, y in DATA])
    found = sc.score(net, "lda_dependency(top_density=0.5)", unit="channel", data=DATA, batches=2, example_inputs=x[:2])
    values = icc(pooled(net.stream(x), "max").detach(), y)
    (stream,) = [scores for name, scores in found.items() if len(scores) == 4]
    torch.testing.assert_close(stream, unit(values))
    kept = values.argsort(descending=True)[:2]
    first, second = net.blocks[1]  # type: ignore[misc]
    rows = []
    for n in range(len(x)):
        into = F.relu(net.stem(x[n : n + 1]))
        low, high = net.blocks[0]  # type: ignore[misc]
        into = F.relu(high(F.relu(low(into))) + into)
        a = F.relu(first(into)).detach().requires_grad_()
        goal = pooled(F.relu(second(a) + into), "max")[:, kept].sum()
        rows.append((a * torch.autograd.grad(goal, a)[0]).sum((0, 2, 3)).abs())
    torch.testing.assert_close(found["blocks.1.0.weight"], unit(torch.stack(rows).mean(0)))
