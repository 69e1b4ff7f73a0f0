"""A network around one attention, and what the tests of opened attention share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.oracles.removal import Slices

__all__ = ["HEAD_ONE", "Around", "near", "unsettled"]


def unsettled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter at random: torch starts biases at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return module.eval()


def near(one: Any, other: Any, tolerance: float = 1e-6) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(one, tuple):
        return len(one) == len(other) and all(near(a, b, tolerance) for a, b in zip(one, other, strict=True))
    return one.shape == other.shape and torch.allclose(one, other, atol=tolerance, rtol=0)


class Around(nn.Module):
    """Layers of other widths around one attention, so that none of its own axes is an output."""

    def __init__(self, width: int = 8, heads: int = 4, *, need_weights: bool = True, **options: Any) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.before = nn.Linear(5, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True, **options)
        self.after = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(x + self.attention(x, x, x, need_weights=self.need_weights)[0])


HEAD_ONE: list[Slices] = [
    ("attention.in_proj_weight", 0, [2, 3, 10, 11, 18, 19]),
    ("attention.in_proj_bias", 0, [2, 3, 10, 11, 18, 19]),
    ("attention.out_proj.weight", 1, [2, 3]),
]
"""Head 1 of 4 in a width of 8: the worked numbers of the catalogue."""
