"""Small networks and data for pruning before training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

F64 = torch.float64


def conv_net(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 3),
    ).double()


def batches(count: int = 2, rows: int = 7) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(rows, 2, 4, 4, generator=g, dtype=F64), torch.randint(0, 3, (rows,), generator=g))
        for _ in range(count)
    ]


def small() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def points() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(30, 6, generator=g, dtype=F64), torch.randint(0, 3, (30,), generator=g)
