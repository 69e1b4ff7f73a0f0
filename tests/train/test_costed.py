"""Criteria that weigh costs, on convolutions at different resolutions, against loops over examples in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.core import CRITERIA
from secateur.core.units import parse_unit
from secateur.model.evidence import Source, collect
from secateur.model.targets import find_targets

F64 = torch.float64


def network() -> nn.Sequential:
    """Maps of 8 x 8, then 4 x 4, then 2 x 2."""
    torch.manual_seed(0)
    first = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(2)]
    third = [nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)]
    return nn.Sequential(*first, *second, *third).double().eval()


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 2, 8, 8, generator=g, dtype=F64), torch.randint(0, 3, (n,), generator=g)) for n in sizes]


DATA = batches(4, 3)
POSITIONS = {"0.weight": 64, "3.weight": 16, "6.weight": 4, "9.weight": 1}
WEIGHTS = {"0.weight": 18, "3.weight": 18, "6.weight": 6}
"""Of one filter."""


def theta(net: nn.Sequential, at: int) -> Tensor:
    """Taylor 2017 of the convolution ``net[at]``: mean_n |sum a dL_n/da|, of length 1."""
    rows = []
    for x, y in DATA:
        for one in range(len(x)):
            a = net[: at + 1](x[one : one + 1]).detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(net[at + 1 :](a), y[one : one + 1]), a)
            rows.append((a * slope).sum((0, 2, 3)).detach().abs())
    mean = torch.stack(rows).mean(0)
    return mean / mean.norm()


@pytest.mark.parametrize("flops_weight", [0.0, 1e-3, 50.0])
@pytest.mark.parametrize("unit", ["filter", "channel"])
def test_taylor_less_lambda_times_millions_of_operations(unit: str, flops_weight: float) -> None:
    net = network()
    more = {"example_inputs": DATA[0][0]} if unit == "channel" else {}
    spec = f"taylor_2017_flops(flops_weight={flops_weight})"
    found = sc.score(net, spec, unit=unit, data=DATA, loss=F.cross_entropy, batches=2, **more)  # type: ignore[arg-type]
    for name in ["6.weight"] if unit == "channel" else WEIGHTS:  # the others' channels are coupled by the groups
        operations = 2 * POSITIONS[name] * WEIGHTS[name]
        expected = theta(network(), int(name[0])) - flops_weight * operations / 1e6
        torch.testing.assert_close(found[name], expected)


def test_the_published_lambda_is_the_default_and_matters_as_much_as_it_should_on_vgg_16() -> None:
    """Second layer of VGG-16 at 224 x 224, 64 channels: .058 beside a mean score of about .125; last block .002."""
    function = CRITERIA["taylor_2017_flops"].function
    for channels, positions, weights, term in ((64, 224**2, 576, 0.0578), (512, 14**2, 4608, 0.0018)):
        taylor, macs = torch.ones(channels, dtype=F64), torch.full((channels,), float(positions * weights))
        score = float(function(taylor, macs)[0])
        assert channels**-0.5 - score == pytest.approx(term, abs=5e-5)


def test_a_large_lambda_prunes_where_the_maps_are_large() -> None:
    plain, costed = (
        sc.prune(
            network(), 4 / 15, criterion=criterion, unit="filter", data=DATA, loss=F.cross_entropy, min_density=None
        )
        for criterion in ("taylor_2017_flops(flops_weight=0)", "taylor_2017_flops(flops_weight=1000.0)")
    )
    assert [int((~mask).sum()) for mask in costed.unit_masks.values()] == [4, 0, 0]
    assert int((~plain.unit_masks["0.weight"]).sum()) < 4
    taylor = sc.score(network(), "taylor_2017", unit="filter", data=DATA, loss=F.cross_entropy)
    same = sc.score(network(), "taylor_2017_flops(flops_weight=0)", unit="filter", data=DATA, loss=F.cross_entropy)
    assert all(torch.equal(taylor[name], same[name]) for name in taylor)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_woodfisher_divided_by_a_power_of_the_uses_of_a_weight(beta: float) -> None:
    """The inverse of the whole Fisher of each block, by samples, in float64."""
    net, block, damping = network(), 9, 1e-2
    spec = f"woodfisher_flops(beta={beta}, block={block}, damping={damping})"
    found = sc.score(net, spec, data=DATA, loss=F.cross_entropy, batches=2)
    for name in ("0.weight", "6.weight"):
        weight = net.get_parameter(name)
        rows = []
        for x, y in DATA:
            for one in range(len(x)):
                loss = F.cross_entropy(net(x[one : one + 1]), y[one : one + 1])
                rows.append(torch.autograd.grad(loss, weight)[0].flatten())
        g, flat, slow = torch.stack(rows), weight.detach().flatten(), []
        for start in range(0, len(flat), block):
            own = g[:, start : start + block]
            fisher = own.t() @ own / len(own) + damping * torch.eye(own.shape[1], dtype=F64)
            slow.append(flat[start : start + block].square() / (2 * torch.linalg.inv(fisher).diagonal()))
        torch.testing.assert_close(found[name].flatten(), torch.cat(slow) / POSITIONS[name] ** beta)


def test_woodfisher_for_few_operations_moves_the_kept_weights_along_and_spends_less() -> None:
    spent = []
    for beta in (0.0, 2.0):
        net = network()
        spec = f"woodfisher_flops(beta={beta}, block=9, damping=0.01)"
        masks = sc.prune(net, 0.5, criterion=spec, data=DATA, loss=F.cross_entropy, batches=2, update=True)
        spent.append(sum(POSITIONS[name] * int(mask.sum()) for name, mask in masks.unit_masks.items()))
        kept = masks.unit_masks["6.weight"]
        assert not torch.equal(net[6].weight[kept], network()[6].weight[kept])
        assert bool((net[6].weight[~kept] == 0).all())
    assert spent[1] < spent[0]


class Mixed(nn.Module):
    """A functional layer, a module that is called twice, and fused projections; 5 tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up, self.twice, self.turn = nn.Linear(4, 6), nn.Linear(6, 6), nn.ConvTranspose1d(6, 4, 2, 2, groups=2)
        self.mix, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(F.linear(x, self.up.weight, self.up.bias))
        hidden = self.twice(F.relu(self.twice(hidden)))
        hidden = hidden + self.mix(hidden, hidden, hidden, need_weights=False)[0]
        return self.head(self.turn(hidden.transpose(1, 2)).mean(2))


def test_uses_are_counted_however_a_weight_is_called() -> None:
    net, x = Mixed().eval(), torch.randn(3, 5, 4, dtype=F64)
    layout = find_targets(net)
    macs = collect(net, ["macs"], layout, parse_unit("weight")[0], Source(x))["macs"]
    assert {name: set(found.flatten().tolist()) for name, found in macs.items()} == {
        "up.weight": {5.0},
        "twice.weight": {10.0},
        "turn.weight": {5.0},
        "mix.in_proj_weight": {5.0},
        "mix.out_proj.weight": {5.0},
        "head.weight": {1.0},
    }
    assert all(macs[name].shape == key.shape for name, key in layout.items())
    chosen = {name: layout[name] for name in ("up.weight", "twice.weight", "turn.weight")}
    units = collect(net, ["unit_macs"], chosen, parse_unit("filter")[0], Source(x))["unit_macs"]
    assert {name: found.tolist() for name, found in units.items()} == {
        "up.weight": [20.0] * 6,
        "twice.weight": [60.0] * 6,
        "turn.weight": [30.0] * 4,
    }


def test_a_criterion_of_your_own_reads_what_a_weight_costs() -> None:
    net = network()
    found = sc.score(net, lambda weight, macs: weight.abs() / macs, data=DATA, batches=1)
    for name, positions in POSITIONS.items():
        if name in found:
            torch.testing.assert_close(found[name], net.get_parameter(name).detach().abs() / positions)


def test_what_cannot_be_counted_or_weighed_is_refused() -> None:
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x[:, None, :] * self.fc.weight).sum(2))

    net, x = Made(), torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"multiply-adds of 'fc\.weight' were not seen: it goes into aten\.mul"):
        sc.score(net, lambda weight, macs: weight.abs() / macs, data=x)
    with pytest.raises(ValueError, match=r"flops_weight=-1\): the weight of the cost, from 0"):
        sc.score(network(), "taylor_2017_flops(flops_weight=-1)", unit="filter", data=DATA, loss=F.cross_entropy)
    with pytest.raises(ValueError, match=r"beta=-0\.1\): the power of the cost, from 0"):
        sc.score(network(), "woodfisher_flops(beta=-0.1)", data=DATA, loss=F.cross_entropy)
    table = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="is an embedding: it is looked up"):
        sc.score(table, lambda weight, macs: weight / macs, targets="0", data=torch.zeros(2, dtype=torch.long))


def test_strides_paddings_and_dilations_that_differ_by_axis() -> None:
    """Inputs of 5 x 9: (5 + 2 - 2 - 1) // 2 + 1 = 3 rows and (9 - 6 - 1) // 1 + 1 = 3 columns of outputs."""
    net = nn.Conv2d(1, 2, (2, 3), stride=(2, 1), padding=(1, 0), dilation=(2, 3))
    assert net(torch.zeros(1, 1, 5, 9)).shape[2:] == (3, 3)
    unit = parse_unit("weight")[0]
    found = collect(net, ["macs"], find_targets(net), unit, Source(torch.zeros(4, 1, 5, 9)))["macs"]["weight"]
    assert torch.equal(found, torch.full((2, 1, 2, 3), 9.0, dtype=F64))
