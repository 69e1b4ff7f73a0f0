"""The penalty of network slimming against ``loss + strength * sum |gamma|`` differentiated by autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc

X, Y = torch.randn(12, 3, 4, 4, dtype=torch.float64), torch.arange(12) % 2


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.5, -0.4, 0.0, 0.3, -0.2, 0.1]))
    return net


def _with_penalty(net: nn.Sequential, strength: float, steps: int, parts: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(F.cross_entropy(net(x), y) for x, y in zip(X.chunk(parts), Y.chunk(parts), strict=True)) / parts
        (loss + strength * net[1].weight.abs().sum()).backward()
        optimizer.step()


@pytest.mark.parametrize("parts", [1, 3])
def test_fit_trains_with_the_penalty_once_per_step(parts: int) -> None:
    expected, net = _net(), _net()
    _with_penalty(expected, 0.02, steps=3, parts=parts)
    batches = list(zip(X.chunk(parts), Y.chunk(parts), strict=True))
    training = sc.Training(
        epochs=3, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), loss=F.cross_entropy, accumulate=parts
    )
    with sc.slimming(net, 0.02):
        sc.fit(net, batches, training, progress=False)
    for mine, theirs in zip(net.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_closures_and_other_optimizers() -> None:
    expected, net, other = _net(), _net(), _net()
    _with_penalty(expected, 0.02, steps=2, parts=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    stranger = torch.optim.SGD(other.parameters(), lr=1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(X), Y)
        loss.backward()
        return loss

    before = copy.deepcopy(other.state_dict())
    with sc.slimming(net, 0.02):
        optimizer.step(closure)
        optimizer.step(closure=closure)
        gradient = net[1].weight.grad.clone()
        stranger.step()
        assert torch.equal(net[1].weight.grad, gradient)
    assert torch.allclose(net[1].weight, expected[1].weight, rtol=0, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    kept = net[1].weight.detach().clone()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    assert torch.equal(net[1].weight, kept)  # nothing is left behind


def test_masked_scales_stay_zero_and_slim_channels_go() -> None:
    net, options = _net(), {"criterion": "bn_scale", "unit": "channel", "example_inputs": X}
    masks = sc.prune(net, 1 / 6, **options)  # gamma = 0
    assert masks.unit_masks["0.weight"].tolist() == [True, True, False, True, True, True]
    training = sc.Training(epochs=20, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    with sc.slimming(net, 0.5):
        sc.fit(net, [(X, Y)], training, progress=False)
    scales = net[1].weight.detach().abs()
    assert scales[2] == 0.0
    assert scales.sum() < 0.5  # of 1.5
    masks = sc.prune(net, 3 / 6, **options)
    kept = masks.unit_masks["0.weight"]
    assert scales[kept].min() >= scales[~kept].max()


def test_start_and_bad_questions() -> None:
    net = _net()
    with sc.slimming(net, start=0.5):
        assert net[1].weight.tolist() == [0.5] * 6
    wrong: list[tuple[Any, float, str]] = [
        (net, 0.0, "strength=0.0"),
        (net, float("nan"), "strength=nan"),
        (nn.Linear(2, 2), 1e-4, "Linear has no batch norm with scales"),
    ]
    for model, strength, said in wrong:
        with pytest.raises(ValueError, match=said), sc.slimming(model, strength):
            pass


@pytest.mark.parametrize("strength", ["1e-4", None, [1e-4], True, float("nan"), float("inf"), 0.0, -1.0])
def test_a_strength_that_is_no_positive_number_is_refused(strength: object) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"strength=.*: a positive number"), sc.slimming(net, strength):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match=r"start='half': the value of all scales"), sc.slimming(net, start="half"):  # type: ignore[arg-type]
        pass
    assert net[1].weight.tolist() == [1.0, 1.0]
