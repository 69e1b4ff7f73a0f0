"""Criteria that compare units, through sc.score and sc.prune on networks, against slow definitions over pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.core import score
from secateur.core.units import Filter
from tests.oracles.pairs import cosine_slowly, distance_sums, saliency_slowly

X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A residual stream that two convolutions make, a grouped convolution, a depthwise one, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one = nn.Conv2d(2, 9, 3, padding=1)
        self.two = nn.Conv2d(9, 9, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(9, 6, 1, groups=3)
        self.deep = nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.head = nn.Linear(6 * 16, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        x = x + self.two(x)
        x = torch.relu(self.deep(torch.relu(self.grouped(x))))
        return self.out(torch.relu(self.head(x.flatten(1))))


def _rows(module: Any, groups: int = 1) -> list[list[float]]:
    """Each output's weights on all inputs of the layer, zero on those of other groups."""
    weight = module.weight.detach().double()
    per = weight.shape[0] // groups
    rows = []
    for o, own in enumerate(weight.flatten(1)):
        wide = torch.zeros(groups, own.numel(), dtype=torch.float64)
        wide[o // per] = own
        rows.append(wide.flatten().tolist())
    return rows


@pytest.mark.parametrize(("name", "groups"), [("one", 1), ("grouped", 3), ("deep", 6), ("head", 1)])
def test_unit_filter_against_all_pairs(name: str, groups: int) -> None:
    net, key = Net(), f"{name}.weight"
    rows = _rows(getattr(net, name), groups)
    assert sc.score(net, "geometric_median", unit="filter")[key].tolist() == pytest.approx(
        distance_sums(rows), rel=1e-6
    )
    for criterion, options in (
        ("cosine", {}),
        ("cosine(absolute=True)", {"absolute": True}),
    ):
        _same_order(sc.score(net, criterion, unit="filter")[key], cosine_slowly(rows, **options))
    if groups == 1:
        _same_order(sc.score(net, "weight_correlation", unit="filter")[key], cosine_slowly(rows, centre=True))
        with_bias = [[*row, b] for row, b in zip(rows, getattr(net, name).bias.tolist(), strict=True)]
        _same_order(sc.score(net, "cosine(with_bias=True)", unit="filter")[key], cosine_slowly(with_bias))


def _same_order(scores: Tensor, expected: list[tuple[int, float]]) -> None:
    order = scores.argsort().tolist()
    assert order[:-1] == [unit for unit, _ in expected]
    assert scores[order[:-1]].tolist() == pytest.approx([value for _, value in expected], abs=1e-6)
    assert scores.unique().numel() == scores.numel()


def test_unit_channel_reads_all_that_makes_a_channel() -> None:
    net = Net()
    both = [[*a, *b] for a, b in zip(_rows(net.one), _rows(net.two), strict=True)]
    # A group of channels of the stream: three, as the grouped convolution reads them three by three.
    groups = sc.groups(net, X)
    layout = groups["one.weight"]
    assert layout.units == 3
    rows = [
        [x for p in range(9) if p % 3 == unit for x in both[p][: len(_rows(net.one)[0])]]
        + [x for p in range(9) if p % 3 == unit for x in both[p][len(_rows(net.one)[0]) :]]
        for unit in range(3)
    ]
    found = sc.score(net, "geometric_median", unit="channel", example_inputs=X)["one.weight"]
    assert found.tolist() == pytest.approx(distance_sums(rows), rel=1e-6)
    _same_order(sc.score(net, "cosine", unit="channel", example_inputs=X)["one.weight"], cosine_slowly(rows))


def test_srinivas_babu_against_all_pairs() -> None:
    net = Net()
    rows = [[*row, b] for row, b in zip(_rows(net.head), net.head.bias.tolist(), strict=True)]
    steps = saliency_slowly(rows, net.out.weight.T.tolist())
    found = sc.score(net, "srinivas_babu", unit="channel", targets="head", example_inputs=X)["head.weight"]
    order = found.argsort().tolist()
    assert order[:-1] == [b for b, _, _ in steps]
    rising = [max(s for _, _, s in steps[: i + 1]) for i in range(len(steps))]
    assert found[order[:-1]].tolist() == pytest.approx(rising, rel=1e-5)


@pytest.mark.parametrize("criterion", ["cosine", "weight_correlation", "srinivas_babu"])
def test_of_planted_duplicates_exactly_the_copies_go(criterion: str) -> None:
    torch.manual_seed(3)
    net, x = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 3)), torch.randn(2, 10)
    pairs = {7: 2, 9: 2, 11: 5, 3: 0}  # copy -> original; three of a kind among them
    with torch.no_grad():
        for copied, original in pairs.items():
            net[0].weight[copied] = net[0].weight[original]
            net[0].bias[copied] = net[0].bias[original]
    masks = sc.prune(net, 4 / 12, criterion=criterion, unit="channel", example_inputs=x)
    gone = {i for i, kept in enumerate(masks.unit_masks["0.weight"].tolist()) if not kept}
    families = [{2, 7, 9}, {5, 11}, {0, 3}]
    assert all(len(family - gone) == 1 for family in families)
    assert gone <= set().union(*families)
    if criterion != "srinivas_babu":  # which one goes is not a matter of saliency there
        assert gone == set(pairs)


def test_dead_rows_go_first_and_scaled_copies_lose_the_smaller() -> None:
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].weight[4] = 0.0
        net[0].weight[1] = 0.25 * net[0].weight[6]
        net[0].weight[2] = -3.0 * net[0].weight[6]
    found = sc.score(net, "cosine", unit="filter")["0.weight"]
    assert found.argsort().tolist()[:2] == [4, 1]
    assert found[4].item() == -1.0
    assert found[1].item() == pytest.approx(0.0, abs=1e-9)
    turned = sc.score(net, "cosine(absolute=True)", unit="filter")["0.weight"]
    assert set(turned.argsort().tolist()[:3]) == {4, 1, 6}  # 2 is the longest of its line
    constant = sc.score(net, lambda weight: weight, unit="weight")["0.weight"].clone()
    constant[5] = 0.5
    with torch.no_grad():
        net[0].weight.copy_(constant)
    flat = sc.score(net, "weight_correlation", unit="filter")["0.weight"]
    assert flat.argsort().tolist()[:2] == [4, 5]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 10_000))
def test_laws_of_greedy_scores(units: int, inputs: int, seed: int) -> None:
    """Whole numbers make ties and duplicates: all scores differ, scale does nothing, dead rows come first."""
    weight = torch.randint(-2, 3, (units, inputs), generator=torch.Generator().manual_seed(seed)).double()
    layout = {"fc": sc.KeyLayout((units, inputs))}

    def scores(criterion: str, rows: Tensor) -> Tensor:
        evidence = {"weight": {"fc": rows}, "bias": {"fc": torch.zeros(units)}}
        return score(criterion, evidence, layout, Filter())["fc"]

    for criterion in ("cosine", "weight_correlation"):
        found = scores(criterion, weight)
        assert found.unique().numel() == units
        assert torch.equal(found, scores(criterion, 4.0 * weight))
    found = scores("cosine", weight)
    dead = (weight == 0).all(1)
    assert bool((found[dead] < 0).all())
    assert bool((found[~dead] >= 0).all())
    if units > 1:
        turn = torch.randperm(units, generator=torch.Generator().manual_seed(seed))
        medians = scores("geometric_median", weight)
        assert torch.allclose(medians[turn], scores("geometric_median", weight[turn]))


def test_bad_questions_are_answered_in_words() -> None:
    net = Net()
    with pytest.raises(ValueError, match="nobody has seen who reads it; take unit='channel'"):
        sc.score(net, "srinivas_babu", unit="filter")
    with pytest.raises(ValueError, match="'cosine' gives one score per channel or filter"):
        sc.score(net, "cosine", unit="weight")
    with pytest.raises(ValueError, match="see which batch norm reads"):
        sc.score(net, "bn_scale", unit="filter")
    with pytest.raises(ValueError, match=r"no batch norm with scales stands behind the layer 'one.weight'"):
        sc.score(net, "bn_scale", unit="filter", data=X)
    with pytest.raises(ValueError, match=r"no batch norm with scales stands behind the group 'one.weight'"):
        sc.score(net, "bn_scale", unit="channel", example_inputs=X)
    with torch.no_grad():
        net.one.weight[0, 0, 0, 0] = torch.nan
    for criterion in ("cosine", "geometric_median", "weight_correlation", "weight_entropy"):
        with pytest.raises(ValueError, match="NaN"):
            sc.score(net, criterion, unit="filter")


def test_transposed_convolutions_count_their_own_outputs() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(4, 3, 2), nn.ReLU(), nn.Conv2d(3, 1, 1))
    rows = net[0].weight.detach().double().transpose(0, 1).flatten(1).tolist()  # stored as [inputs, outputs, ...]
    found = sc.score(net, "geometric_median", unit="filter")["0.weight"]
    assert found.tolist() == pytest.approx(distance_sums(rows), rel=1e-6)
    with_bias = [[*row, b] for row, b in zip(rows, net[0].bias.tolist(), strict=True)]
    _same_order(sc.score(net, "cosine(with_bias=True)", unit="filter")["0.weight"], cosine_slowly(with_bias))


def test_biases_of_attention_projections() -> None:
    """Queries, keys and values of other widths have weights of their own and one bias for all."""
    attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
    with torch.no_grad():
        attention.in_proj_bias.copy_(torch.arange(12.0))
    found = sc.score(attention, "cosine(with_bias=True)", unit="filter", targets="v_proj_weight")["v_proj_weight"]
    rows = [[*row, 8.0 + i] for i, row in enumerate(attention.v_proj_weight.detach().double().tolist())]
    _same_order(found, cosine_slowly(rows))


@pytest.mark.parametrize(
    "criterion", ["cosine", "geometric_median", "weight_correlation", "srinivas_babu", "weight_entropy", "bn_scale"]
)
def test_budgets_and_plans_take_them(criterion: str) -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1))
    net.extend([nn.BatchNorm2d(12), nn.Flatten(), nn.Linear(12 * 16, 4)])
    small = sc.shrink(net, example_inputs=X, sparsity=0.5, criterion=criterion)
    assert small[0].out_channels + small[3].out_channels == 10
    plan = sc.Plan(0.5, criterion=criterion, unit="channel", schedule="linear", begin=1, end=3)
    pruner = sc.Pruner(net, plan, example_inputs=X)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    pruner.attach(optimizer)
    kept: list[set[tuple[str, int]]] = []
    for _ in range(4):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()
        masks = pruner.masks
        units = {} if masks is None else masks.unit_masks
        kept.append({(name, int(at)) for name, mask in units.items() for at in mask.nonzero()})
    assert len(kept[-1]) == 10
    assert kept[-1] == kept[-2] < kept[-3]  # what was gone stays gone


def test_residual_channels_have_the_mean_of_their_norms() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.na = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
            self.b, self.nb = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.na(self.a(x)))
            return self.head((x + self.nb(self.b(x))).mean((2, 3)))

    net = Two()
    with torch.no_grad():
        net.na.weight.copy_(torch.tensor([1.0, -2.0, 3.0]))
        net.nb.weight.copy_(torch.tensor([5.0, 0.0, 0.5]))
    (found,) = sc.score(net, "bn_scale", unit="channel", example_inputs=X).values()
    assert found.tolist() == [3.0, 1.0, 1.75]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_norm_behind_the_activation_is_not_that_of_the_layer(inplace: bool) -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace), nn.BatchNorm1d(4)), torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"no batch norm with scales stands behind the layer '0.weight'"):
        sc.score(net, "bn_scale", unit="filter", targets="0", data=x)
