"""The catalogue's worked numbers for criteria that compare units, entropy and network slimming; named by their ids."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc

T = torch.tensor
X2 = torch.zeros(2, 2)


def _layer(weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> nn.Sequential:
    units, inputs = weight.shape
    first = nn.Linear(inputs, units, bias=bias is not None)
    last = nn.Linear(units, 2 if out is None else out.shape[0], bias=False)
    with torch.no_grad():
        first.weight.copy_(weight)
        if bias is not None:
            first.bias.copy_(bias)
        if out is not None:
            last.weight.copy_(out)
    return nn.Sequential(first, nn.ReLU(), last).double()


def _scores(criterion: str, weight: Tensor, unit: str = "filter") -> Tensor:
    options = {} if unit == "filter" else {"example_inputs": torch.randn(2, weight.shape[1]).double()}
    return sc.score(_layer(weight), criterion, unit=unit, **options)["0.weight"]


def _gone(masks: sc.Masks, name: str = "0.weight") -> list[int]:
    return [i for i, kept in enumerate(masks.unit_masks[name].flatten().tolist()) if not kept]


@pytest.mark.parametrize("unit", ["filter", "channel"])
def test_w5_geometric_median(unit: str) -> None:
    rows = T([[1.0, 0.0], [1.1, 0.1], [0.0, 0.1], [-2.0, -2.0]])
    assert _scores("geometric_median", rows, unit).tolist() == pytest.approx(
        [4.751960, 4.985750, 5.004988, 10.249879],
        abs=2e-6,  # the last in float32
    )
    net = _layer(rows)
    assert _gone(sc.prune(net, 0.25, criterion="geometric_median", unit="filter", targets="0")) == [0]
    assert _gone(sc.prune(_layer(rows), 0.25, criterion="l2", unit="filter", targets="0")) == [2]
    turned = T([[1.0, 0.0], [-1.0, 0.0], [0.9, 0.3]])
    assert int(_scores("geometric_median", turned, unit).argmin()) == 2


def test_w6_cosine_and_correlation_choose_other_pairs() -> None:
    rows = T([[1.0, 2.0, 3.0], [2.0, 4.0, 6.5], [-1.0, -2.0, -3.0], [3.0, -1.0, 0.0]])
    found = _scores("cosine", rows).tolist()
    assert found[0] == pytest.approx(0.000717, abs=5e-7)  # D01; row 1 is longer
    assert min(found) == found[0]
    pair = _scores("cosine", rows[[0, 3]])  # the shorter row goes at D03
    assert pair.tolist() == pytest.approx([3.0, 0.915485], abs=1e-6)
    assert _scores("cosine", rows[[0, 2]]).tolist() == pytest.approx([3.0, 2.0])  # D02, equal lengths: the later
    correlation = _scores("weight_correlation", rows[[0, 3]])
    assert correlation.tolist() == pytest.approx([1 + 0.720577, 3.0], abs=1e-6)  # r03; row 0 varies less


def test_w6_srinivas_babu() -> None:
    weight, bias = T([[1.0, 0.0], [1.0, 0.2], [-1.0, 1.0]]), T([0.1, 0.1, 0.0])
    out = T([[0.5, 0.1, 2.0], [-0.5, 0.3, 1.0]])
    x = torch.randn(2, 2).double()
    found = sc.score(_layer(weight, bias, out), "srinivas_babu", unit="channel", example_inputs=x)["0.weight"]
    assert found[1].item() == pytest.approx(0.002)
    # Then 0 has (.6, -.2), of mean square .2, and lies at 5.01 of 2; 2 into 0 costs 12.525.
    assert found[0].item() == pytest.approx(0.2 * 5.01)
    assert found.argsort().tolist() == [1, 0, 2]


def test_w7_entropy_of_weights() -> None:
    peaked, spread = [0.05] * 7 + [0.9], [0.1, 0.2, 0.35, 0.4, 0.6, 0.7, 0.85, 0.9]
    ends = [0.0, 1.0] * 4
    rows = T([peaked, spread, ends], dtype=torch.float64)
    high = _scores("weight_entropy(bins=4)", rows)
    assert high[:2].tolist() == pytest.approx([-0.376770, -1.386294], abs=1e-6)
    assert _scores("weight_entropy(bins=4, prune='low')", rows)[:2].tolist() == pytest.approx((-high[:2]).tolist())
    assert (_scores("weight_entropy(bins=4)", rows).argmin(), high[:2].argmax()) == (1, 0)
    own = _scores("weight_entropy(bins=4, range='unit')", rows)
    assert own[1].item() == pytest.approx(-1.320888, abs=1e-6)
    scaled = _scores("weight_entropy(bins=4, range='unit')", rows * T([[1000.0], [1.0], [1.0]]))
    assert scaled.tolist() == pytest.approx(own.tolist())
    for wrong in ("bins=1", "bins=2.0", "range='net'", "prune='most'"):
        with pytest.raises(ValueError, match="weight_entropy"):
            _scores(f"weight_entropy({wrong})", rows)


def _slim() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Flatten()
    )
    net.append(nn.Linear(12, 2))
    with torch.no_grad():
        net[1].weight.copy_(T([0.9, 0.05, -0.4]))
        net[4].weight.copy_(T([-0.02, 0.3, 0.01]))
        net[1].bias.fill_(0.5)
    return net


def test_w23_network_slimming_is_global_and_exact() -> None:
    net, x = _slim(), torch.randn(2, 1, 2, 2)
    masks = sc.prune(net, 0.5, criterion="bn_scale", unit="channel", example_inputs=x)
    assert (_gone(masks), _gone(masks, "3.weight")) == ([1], [0, 2])
    assert net[1].bias.tolist() == [0.5, 0.0, 0.5]  # beta goes too
    by_filter = sc.score(_slim(), "bn_scale", unit="filter", data=x)
    assert by_filter["0.weight"].tolist() == pytest.approx([0.9, 0.05, 0.4])
    assert by_filter["3.weight"].tolist() == pytest.approx([0.02, 0.3, 0.01])
