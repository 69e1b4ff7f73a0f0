"""ResNet-56 on CIFAR by the published recipe of filter pruning, without training: the paper's figures exactly.

Li, Kadav, Durdanovic, Samet, Graf 2017, arXiv 1608.08710: the filters of the first convolution of each block with the
smallest L1 norm go, by stage and but for the sensitive layers; counting layers from 1, those are the even ones.
"""

from __future__ import annotations

import pytest
import torch

import secateur as sc
from secateur.benchmark.models import CifarResNet, ResNet56
from secateur.measure import count

PARAMETERS, MACS = 853_018, 125_485_696
RECIPES = {
    "A": ((0.1, 0.1, 0.1), {16, 20, 38, 54}, -9.34, -10.40),
    "B": ((0.6, 0.3, 0.1), {16, 18, 20, 34, 38, 54}, -13.75, -27.56),
}


def units_to_remove(model: CifarResNet, rates: tuple[float, ...], skipped: set[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for block in range(27):
        layer, (stage, place) = 2 + 2 * block, divmod(block, 9)
        if layer in skipped:
            continue
        name = f"layer{stage + 1}.{place}.conv1.weight"
        norms = model.get_parameter(name).detach().abs().sum((1, 2, 3))
        kept = int(len(norms) * (1 - rates[stage]))
        found[name] = sorted(norms.argsort()[: len(norms) - kept].tolist())
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_figures_of_the_paper(recipe: str) -> None:
    rates, skipped, fewer_parameters, fewer_macs = RECIPES[recipe]
    torch.manual_seed(0)
    model, x = ResNet56().eval(), torch.randn(2, 3, 32, 32)
    dense = count(model, x)
    assert (dense.parameters, dense.macs) == (PARAMETERS, MACS)
    units = units_to_remove(model, rates, skipped)
    small = sc.shrink(model, units=units, example_inputs=x)
    counts = count(small, x)
    assert round(100 * (counts.parameters / PARAMETERS - 1), 2) == fewer_parameters
    assert round(100 * (counts.macs / MACS - 1), 2) == fewer_macs
    with torch.no_grad():
        for name, gone in units.items():
            model.get_parameter(name)[gone] = 0.0
            norm = model.get_submodule(name.replace("conv1.weight", "bn1"))
            norm.weight[gone], norm.bias[gone] = 0.0, 0.0
        torch.testing.assert_close(small(x), model(x), atol=1e-5, rtol=1e-5)


def test_a_budget_reaches_the_same_from_the_inner_widths() -> None:
    torch.manual_seed(0)
    model, x = ResNet56().eval(), torch.randn(2, 3, 32, 32)
    inner = "layer*.conv1"
    small = sc.shrink(model, example_inputs=x, macs=1 - 0.2756, criterion="l1", targets=inner)
    record = sc.shrinkage(small)
    assert record is not None
    assert record.after.macs == count(small, x).macs
    assert 0.72 < count(small, x).macs / MACS <= 0.7244
    assert small.layer1[0].conv2.out_channels == 16
    assert small.layer3[8].conv2.out_channels == 64
