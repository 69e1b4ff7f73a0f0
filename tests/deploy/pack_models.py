"""Small networks for the tests of `pack`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sparse(model: nn.Module, sparsity: float = 0.9) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data[torch.rand_like(parameter) < sparsity] = 0.0
    return model.eval()


def lenet() -> nn.Module:
    return sparse(
        nn.Sequential(
            nn.Flatten(), nn.Linear(144, 100), nn.ReLU(), nn.Dropout(), nn.Linear(100, 50), nn.GELU(), nn.Linear(50, 10)
        )
    )


class Branches(nn.Module):
    """A residual, a value read twice, torch in the middle, two results in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 8)
        self.norm = nn.Softmax(1)

    def forward(self, x: Tensor, scale: float = 2.0) -> dict[str, Tensor]:
        hidden = F.silu(self.a(x))
        inner = self.b(hidden) + hidden
        normed = self.norm(inner)
        return {"out": self.c(normed + inner) * scale, "hidden": hidden}


class Crossing(nn.Module):
    """A path leaves what could be one region and enters it again: fused as one, it would wait for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        return self.b(first + torch.cumsum(first, 1))


class Normed(nn.Module):
    """Layer norms run in the program; one that would open it goes along, one of two axes does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 24)
        self.first, self.second, self.both = nn.LayerNorm(24), nn.LayerNorm(24), nn.LayerNorm((3, 24))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(self.first(x)) + x
        return self.both(self.b(F.gelu(self.second(hidden))) + hidden)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def agree(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return set(found) == set(wanted) and all(agree(found[name], wanted[name]) for name in wanted)
    return found.shape == wanted.shape and bool(torch.allclose(found, wanted, atol=1e-5))
