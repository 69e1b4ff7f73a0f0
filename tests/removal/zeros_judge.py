"""The judge of everything about zeros: the network with the zeros itself, in float64, on fresh inputs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.graph.examples import as_examples
from secateur.model.graph.groups import find_groups
from secateur.model.graph.zeros import DeadUnits, remove_dead

__all__ = ["X", "conv_net", "filter_off", "gap", "gone", "image", "mlp", "shrunk", "zero"]


def gap(before: nn.Module, after: nn.Module, x: Tensor) -> float:
    """The largest difference on fresh noise at two batch sizes."""
    worst, noise = 0.0, torch.Generator().manual_seed(7)
    with torch.no_grad():
        for batch in (1, 5):
            fresh = torch.randn((batch, *x.shape[1:]), generator=noise, dtype=x.dtype)
            worst = max(worst, float((before(fresh) - after(fresh)).abs().max()))
    return worst


def shrunk(net: nn.Module, x: Tensor, *, constants: bool = True) -> tuple[nn.Module, DeadUnits]:
    """Take out what is dead; the network itself is left alone and the result returns the same."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    small, _, dead = remove_dead(net, find_groups(net, x), as_examples(x), constants=constants)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert gap(net, small, x) < 1e-10
    return small, dead


def gone(dead: DeadUnits, name: str) -> list[int]:
    return torch.nonzero(~dead.keep[name]).reshape(-1).tolist()


def zero(net: nn.Module, name: str, index: Any) -> None:
    with torch.no_grad():
        dict(net.named_parameters())[name][index] = 0


def mlp(*widths: int) -> nn.Sequential:
    layers = list[nn.Module]()
    for into, out in pairwise(widths):
        layers += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def image(size: int = 6) -> Tensor:
    return torch.zeros(2, 3, size, size, dtype=torch.float64)


X = torch.zeros(2, 4, dtype=torch.float64)


def conv_net(padding: int, *, bias: bool = True, norm: bool = False) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        after = [nn.BatchNorm2d(5)] if norm else []
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 5, 3, padding=padding, bias=bias),
            *after,
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 2),
        )

    return make


def filter_off(net: nn.Module, unit: int, constant: float) -> None:
    """Mask a filter as unit ``filter`` does: its batch norm goes on and makes a constant."""
    with torch.no_grad():
        net[0].weight[unit], net[0].bias[unit] = 0, 0
        norm = net[1]
        scale = norm.weight[unit] / (norm.running_var[unit] + norm.eps).sqrt()
        norm.bias[unit] = constant + norm.running_mean[unit] * scale
