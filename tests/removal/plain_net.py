"""A network that a user could have written: imports torch and nothing else, also where secateur is not installed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Plain"]


class Plain(nn.Module):
    """Convolutions with a buffer in no state dict, torch's encoder, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.wide = nn.Conv1d(16, 12, 3, padding=1)
        self.norm = nn.BatchNorm1d(12)
        self.each = nn.Conv1d(12, 12, 3, padding=1, groups=12)
        self.back = nn.Conv1d(12, 16, 1)
        self.register_buffer("gain", torch.linspace(0.5, 1.5, 12), persistent=False)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 2)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        y = self.each(torch.relu(self.norm(self.wide(x.transpose(1, 2)))))
        x = x + self.back(y * self.get_buffer("gain")[:, None]).transpose(1, 2)
        return self.head(self.encoder(x))
