"""The protocol: the networks are the published ones, and methods differ in the method alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.benchmark.data import Images, digits
from secateur.benchmark.models import LeNet5, Residual, ResNet20, lenet_300_100
from secateur.benchmark.protocol import METHODS, Recipe, Setting, fit, run_method, steps_per_epoch, training_epochs
from secateur.measure import count


def test_networks_have_the_published_sizes():
    """Catalogue 9.1 [N, D1] and 9.3 [N, D3]."""

    def size(net: nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    assert size(lenet_300_100()) == 266_610
    assert size(LeNet5(28)) == 431_080
    assert size(ResNet20()) == 269_722
    assert 290_000 < size(Residual()) < 320_000
    assert count(LeNet5(28), torch.zeros(1, 1, 28, 28)).macs == 2_293_000
    assert count(ResNet20(), torch.zeros(1, 3, 32, 32)).macs == 40_551_040


def few() -> Images:
    return digits().first(192, 64)


RECIPE = Recipe(epochs=2, tuning_epochs=3, rounds=3, batch_size=64, seed=1)


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    fresh = LeNet5(8)
    dense = copy.deepcopy(fresh)
    fit(dense, few(), RECIPE, epochs=2, lr=RECIPE.lr)
    return fresh, dense


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"filter removal"}))
def test_every_method_reaches_the_sparsity_and_leaves_its_inputs_alone(
    method: str, networks: tuple[nn.Module, nn.Module]
):
    fresh, dense = networks
    before = [p.detach().clone() for net in networks for p in net.parameters()]
    ticks: list[int] = []
    setting = Setting(fresh, dense, few(), RECIPE, 0.8, lambda steps=1: ticks.append(steps))
    outcome = run_method(method, setting)
    assert outcome.masks is not None
    assert outcome.masks.shares().units == pytest.approx(0.8, abs=1e-4)
    outcome.masks.check()
    assert sc.find_masks(outcome.model) is outcome.masks
    assert len(ticks) == training_epochs(method, RECIPE) * steps_per_epoch(few(), RECIPE)
    assert outcome.history[-1].sparsity == pytest.approx(0.8, abs=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, (p for n in networks for p in n.parameters()), strict=True))
    assert sc.find_masks(dense) is None
    assert sc.find_masks(fresh) is None


def test_filter_removal_halves_every_width_and_tunes():
    torch.manual_seed(1)
    dense = Residual()
    before = copy.deepcopy(dense.state_dict())
    ticks: list[int] = []
    setting = Setting(copy.deepcopy(dense), dense, few(), RECIPE, 0.9, lambda steps=1: ticks.append(steps))
    outcome = run_method("filter removal", setting)
    assert outcome.masks is None
    widths = {name: len(p) for name, p in outcome.model.named_parameters() if p.dim() == 4}
    assert widths == {name: len(p) // 2 for name, p in dense.named_parameters() if p.dim() == 4}
    assert len(ticks) == training_epochs("filter removal", RECIPE) * steps_per_epoch(few(), RECIPE) > 0
    assert outcome.history[-1].sparsity == 0.5
    assert outcome.history[-1].kept == (32 + 32 + 64 + 64 + 128 + 128) // 2
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_the_same_seed_gives_the_same_network(networks: tuple[nn.Module, nn.Module]):
    runs = [run_method("gradual magnitude", Setting(*networks, few(), RECIPE, 0.8)).model for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True))


def test_an_unknown_method_lists_the_known_ones(networks: tuple[nn.Module, nn.Module]):
    with pytest.raises(ValueError, match="no method 'magic'; known: one-shot magnitude"):
        run_method("magic", Setting(*networks, few(), RECIPE, 0.8))
