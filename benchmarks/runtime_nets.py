"""Networks of `runtime_networks.py` that other benchmarks do not have, and zeros in random places."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BertBlock", "TinyDarknet", "randomly_sparse"]


class BertBlock(nn.Module):
    """One block of BERT-base: attention, sum, norm, 3072 units, sum, norm (Devlin et al. 2018, arXiv 1810.04805)."""

    def __init__(self, width: int = 768, heads: int = 12, hidden: int = 3072) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, T, width] to tokens."""
        batch, places, width = x.shape
        split = (batch, places, self.heads, width // self.heads)
        query, key, value = (layer(x).view(split).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, places, width)
        x = self.first(x + self.out(mixed))
        return self.second(x + self.down(F.gelu(self.up(x))))


class TinyDarknet(nn.Module):
    """Sixteen convolutions, 1.04 M parameters; the names of the given weights."""

    WIDTHS = (16, 32, 16, 128, 16, 128, 32, 256, 32, 256, 64, 512, 64, 512, 128, 1000)
    KERNELS = (3, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 1)
    POOLED = (1, 2, 6, 10)  # a pool stands behind these

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for number, (width, kernel) in enumerate(zip(self.WIDTHS, self.KERNELS, strict=True), 1):
            last = number == len(self.WIDTHS)
            setattr(self, f"conv{number}", nn.Conv2d(channels, width, kernel, 1, kernel // 2, bias=last))
            if not last:
                setattr(self, f"bn{number}", nn.BatchNorm2d(width, eps=1e-3))
            channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, 224, 224] to logits [B, 1000]."""
        for number in range(1, len(self.WIDTHS)):
            conv, norm = self.get_submodule(f"conv{number}"), self.get_submodule(f"bn{number}")
            x = F.leaky_relu(norm(conv(x)), 0.1)
            x = F.max_pool2d(x, 2, 2) if number in self.POOLED else x
        return F.adaptive_avg_pool2d(self.conv16(x), 1).flatten(1)


def randomly_sparse(model: nn.Module, sparsity: float) -> nn.Module:
    """Zeros in random places of every matrix and convolution but the stem and depthwise ones: for timing alone."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.shape[1] > 3:
            parameter.data[torch.rand(parameter.shape, generator=generator) < sparsity] = 0.0
    return model.eval()
