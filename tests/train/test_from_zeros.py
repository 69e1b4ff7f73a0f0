"""``shrink(from_zeros=True)``: what the caller gets back, in place and beside an optimizer."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur as sc


def net_with_a_constant() -> tuple[nn.Module, Tensor]:
    """Of eight neurons one is dead and one is constant: no weights, but a bias of 2."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        net[0].weight[[2, 6]] = 0.0
        net[0].bias[2], net[0].bias[6] = 0.0, 2.0
    return net, torch.randn(4, 5, dtype=torch.float64)


def trained(net: nn.Module, x: Tensor) -> torch.optim.Optimizer:
    """An Adam with a state, whose step changed nothing."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0)
    net(x).square().mean().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("inplace", [False, True])
def test_constants_are_folded_into_the_model_that_is_returned(inplace: bool) -> None:
    net, x = net_with_a_constant()
    before, expected = copy.deepcopy(net.state_dict()), net(x).detach()
    small, optimizer = sc.shrink(net, example_inputs=x, from_zeros=True, optimizer=trained(net, x), inplace=inplace)
    assert small[0].out_features == 6
    torch.testing.assert_close(small(x).detach(), expected, rtol=0, atol=1e-12)
    assert optimizer.state[small[0].weight]["exp_avg"].shape == (6, 5)
    assert (small is net) == inplace
    if not inplace:
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_zeros_that_grew_back_are_refused() -> None:
    net, x = net_with_a_constant()
    masks = sc.prune(net, 0.5, unit="filter", targets="0")
    with torch.no_grad():
        net[0].weight.add_(1.0)
    with pytest.raises(ValueError, match="are no longer zero"):
        sc.shrink(net, example_inputs=x, from_zeros=True)
    masks.apply()
    assert sc.shrink(net, example_inputs=x, from_zeros=True)[0].out_features <= 4


@pytest.mark.parametrize("choice", [{"units": {"0.weight": [0]}}, {"macs": 0.5}, {"recalibrate": [1]}])
def test_zeros_and_other_choices_do_not_mix(choice: dict[str, object]) -> None:
    net, x = net_with_a_constant()
    net.insert(1, nn.BatchNorm1d(8).double())  # so that recalibrate= has something to do
    with pytest.raises(ValueError, match="from_zeros=True takes out what is zero already"):
        sc.shrink(net.eval(), example_inputs=x, from_zeros=True, **choice)


def test_a_network_without_dead_units_is_refused() -> None:
    net, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 5)
    with pytest.raises(ValueError, match="nothing to remove"):
        sc.shrink(net, example_inputs=x, from_zeros=True)


def test_a_copy_with_its_optimizer_remembers_what_went_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 5)
    once = sc.shrink(net, example_inputs=x, units={"0.weight": [1]})
    twice, _ = sc.shrink(once, example_inputs=x, units={"0.weight": [0, 3]}, optimizer=trained(once, x))
    sc.save(twice, tmp_path / "small.safetensors")
    back = sc.load(tmp_path / "small.safetensors", into=nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)))
    assert torch.equal(back(x), twice(x))


@pytest.mark.parametrize("groups", [1, 4])
def test_places_of_a_group_norm_are_inexact(groups: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(groups, 16), nn.ReLU(), nn.Conv2d(16, 2, 1))
    loose = sc.groups(net, torch.randn(2, 3, 6, 6), exact=False)["0.weight"]
    assert (loose.units, loose.exact) == (16 // groups, False)
    assert "group norm" in loose.why_inexact
