"""Networks with batch norms, and units in them that are multiples of others behind their norms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EQUAL", "PAIRS", "SCALED", "ResNet", "call", "chain", "pairs_of", "plant", "random_norms"]

SCALED = {7: (2, 2.0), 9: (2, 0.5), 11: (5, 3.0), 3: (0, 1.0)}
"""Copy -> original and factor."""
EQUAL = {copied: (original, 1.0) for copied, (original, _) in SCALED.items()}
PAIRS = {"cosine": SCALED, "srinivas_babu": EQUAL}


@torch.no_grad()
def random_norms(net: nn.Module) -> None:
    """Norms as a training leaves them; scales of both signs, which is more than a training does."""
    for norm in net.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(norm.weight) < 0.3, -1, 1))
                norm.bias.uniform_(-1, 1)


@torch.no_grad()
def plant(layer: Any, norm: Any, pairs: dict[int, tuple[int, float]]) -> None:
    """Copies whose weights, biases and norms differ, and whose rows behind the norm are multiples."""
    mean, var, eps = norm.running_mean, norm.running_var, norm.eps
    for copied, (original, factor) in pairs.items():
        own = 0.0 if layer.bias is None else layer.bias[original]
        scale = norm.weight[original] / (var[original] + eps).sqrt()
        offset = scale * (own - mean[original]) + norm.bias[original]
        times = float(torch.empty(()).uniform_(0.3, 2)) * (-1) ** copied
        layer.weight[copied] = times * layer.weight[original]
        norm.weight[copied] = factor * scale / times * (var[copied] + eps).sqrt()
        own = 0.0 if layer.bias is None else layer.bias[copied]
        norm.bias[copied] = factor * offset - factor * scale / times * (own - mean[copied])


class Block(nn.Module):
    def __init__(self, inputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, 12, 3, stride, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12)
        self.down = (
            nn.Sequential(nn.Conv2d(inputs, 12, 1, stride, bias=False), nn.BatchNorm2d(12)) if inputs != 12 else None
        )

    def forward(self, x: Tensor) -> Tensor:
        past = x if self.down is None else self.down(x)
        return F.relu(past + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.a, self.b, self.pool = Block(12, 1), Block(12, 1), nn.MaxPool2d(2)
        self.wide = nn.Sequential(nn.Conv2d(12, 16, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.c, self.head = Block(16, 2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.b(self.a(F.relu(self.bn(self.conv(x))))))
        return self.head(self.c(self.wide(x)).mean((2, 3)))


def pairs_of(net: ResNet) -> Iterator[tuple[Any, Any]]:
    """Of all groups of 12: inner channels and streams, whose producers each have a norm of their own."""
    yield net.conv, net.bn
    for block in (net.a, net.b, net.c):
        yield from ((block.conv1, block.bn1), (block.conv2, block.bn2))
    yield from [tuple(net.c.down)]


def chain(*between: nn.Module, bias: bool = True) -> tuple[Any, Tensor]:
    torch.manual_seed(1)
    net: Any = nn.Sequential(nn.Linear(6, 12, bias=bias), *between, nn.Linear(12, 3)).double().eval()
    random_norms(net)
    return net, torch.randn(7, 6).double()


def call(x: Tensor, criterion: str = "cosine") -> dict[str, Any]:
    return {"criterion": criterion, "unit": "channel", "example_inputs": x, "merge": True}
