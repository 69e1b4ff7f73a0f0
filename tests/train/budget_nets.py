"""Networks for budgets, and a slow oracle of what they take."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import secateur as sc
from secateur.measure import count
from secateur.measure.sizes import plain_bytes


class Mixed(nn.Module):
    """A grouped and a depthwise convolution, a transposed one, a weight norm, a linear layer over places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(32, 12, 2, stride=2)
        self.normed = weight_norm(nn.Conv2d(12, 10, 1))
        self.linear = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.relu(self.grouped(F.relu(self.norm(self.first(x)))))))
        x = F.relu(self.normed(F.relu(self.up(x))))
        return self.linear(x.permute(0, 2, 3, 1)).mean((1, 2))


class Attentive(nn.Module):
    """``nn.MultiheadAttention`` between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.wide = nn.Linear(16, 24)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out(F.relu(self.wide(x + self.attention(x, x, x, need_weights=False)[0]))).mean(1)


class Tied(nn.Module):
    """One weight used twice, by a module and by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.hidden = nn.Linear(8, 30)
        self.back = nn.Linear(30, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("unsaved", torch.zeros(5), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.back(F.relu(self.hidden(self.embed(tokens)))))


def mlp(inputs: int = 6, first: int = 12, second: int = 9) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(inputs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 4))


def real(model: nn.Module, x: Tensor) -> dict[str, int]:
    """What a model takes, counted on it by running it and by writing it."""
    counts = count(model, x, masks={})
    return {"params": counts.parameters, "macs": counts.macs, "bytes": len(plain_bytes(model))}


def order_of_removal(model: nn.Sequential) -> list[tuple[str, int]]:
    """Oracle for ``mlp``: units by the root mean square of their weights, over the mean of their layer, ascending."""
    found: list[tuple[float, str, int]] = []
    for name in ("0.weight", "2.weight"):
        weight = model.get_parameter(name).detach().double()
        rms = [float((row * row).mean()) ** 0.5 for row in weight]
        mean = sum(rms) / len(rms)
        found += [(value / mean, name, unit) for unit, value in enumerate(rms)]
    return [(name, unit) for _, name, unit in sorted(found)]


def by_hand(model: nn.Sequential, x: Tensor, limits: dict[str, float]) -> dict[str, list[int]]:
    """Oracle for ``mlp``: remove one unit after the other, really, until the counted figures hold."""
    gone: dict[str, list[int]] = {"0.weight": [], "2.weight": []}
    sizes = {"0.weight": len(model[0].weight), "2.weight": len(model[2].weight)}
    for name, unit in [("", -1), *order_of_removal(model)]:
        if name and len(gone[name]) < sizes[name] - 1:
            gone[name].append(unit)
        figures = real(sc.shrink(model, units=gone, example_inputs=x), x)
        if all(figures[key] <= limit for key, limit in limits.items()):
            return gone
    raise AssertionError("the oracle never got there")
