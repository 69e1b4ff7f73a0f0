"""Vision transformers of published shape, for the benchmarks of removal: ViT and Swin.

Head widths are written as -1, so that a head may get narrower; the number of heads is fixed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Swin", "ViT"]


class _Mlp(nn.Sequential):
    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


class _Attention(nn.Module):
    """Attention with fused queries, keys and values, its scale kept as a number.

    ``functional``: the projections go through ``F.linear`` and their modules are never called, as in the Swin of
    torchvision.
    """

    def __init__(self, dim: int, heads: int, functional: bool = False) -> None:
        super().__init__()
        self.functional = functional
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Tokens [B, N, C], and maybe a bias that broadcasts to the scores [B, heads, N, N]."""
        B, N = x.shape[:2]
        q, k, v = self._project(self.qkv, x).reshape(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        return self._project(self.proj, (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, -1))

    def _project(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x, layer.weight, layer.bias) if self.functional else layer(x)


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """ViT-B/16 for 224x224 images (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

    def __init__(self, dim: int = 768, depth: int = 12, heads: int = 12, size: int = 224, classes: int = 1000) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 16, 16)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (size // 16) ** 2 + 1, dim) * 0.02)
        self.blocks = nn.Sequential(*[_Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def _relative_places(window: int) -> Tensor:
    """For every pair of tokens of a window, the row of the bias table: [window**4]."""
    steps = torch.arange(window)
    places = torch.stack(torch.meshgrid(steps, steps, indexing="ij")).flatten(1)
    apart = (places[:, :, None] - places[:, None, :]) + window - 1
    return (apart[0] * (2 * window - 1) + apart[1]).flatten()


def _shift_mask(side: int, window: int, shift: int) -> Tensor:
    """[windows, N, N]: -100 between tokens that only the cyclic shift brought together."""
    region = torch.zeros(side, side)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for row, rows in enumerate(cuts):
        for column, columns in enumerate(cuts):
            region[rows, columns] = 3 * row + column
    n = side // window
    tokens = region.view(n, window, n, window).permute(0, 2, 1, 3).reshape(n * n, window * window)
    return (tokens[:, None, :] != tokens[:, :, None]).float() * -100.0


class _SwinBlock(nn.Module):
    """Attention within windows, which every second block shifts by half a window."""

    def __init__(self, dim: int, heads: int, side: int, shifted: bool, functional: bool, window: int = 7) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.shift = window // 2 if shifted and side > window else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attention = _Attention(dim, heads, functional)
        self.bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.02)
        self.register_buffer("places", _relative_places(window), persistent=False)
        mask = _shift_mask(side, window, self.shift) if self.shift else None
        self.register_buffer("mask", mask, persistent=False)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in their places, [B, H, W, C]."""
        x = x + self._windows(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _windows(self, x: Tensor) -> Tensor:
        (B, H, W, _), w = x.shape, self.window
        N = w * w
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(B, H // w, w, W // w, w, -1).permute(0, 1, 3, 2, 4, 5).reshape(B * (H // w) * (W // w), N, -1)
        bias = self.bias[self.places].view(N, N, self.heads).permute(2, 0, 1)[None]
        if self.mask is not None:
            bias = (bias + self.mask[:, None]).repeat(B, 1, 1, 1)
        x = self.attention(x, bias)
        x = x.view(B, H // w, W // w, w, w, -1).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, -1)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class _Merge(nn.Module):
    """Four neighbours side by side, then half as many channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """Swin-T for 224x224 images (Liu et al. 2021, arXiv 2103.14030)."""

    def __init__(
        self,
        functional: bool = True,
        dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        size: int = 224,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, 4)
        self.patch_norm = nn.LayerNorm(dim)
        side = size // 4
        blocks: list[nn.Module] = []
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if stage:
                blocks.append(_Merge(dim))
                dim, side = 2 * dim, side // 2
            blocks += [_SwinBlock(dim, count, side, bool(i % 2), functional) for i in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        tokens = self.patch_norm(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.norm(self.blocks(tokens)).mean((1, 2)))
