"""Attention as it is written by hand, and torch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CrossAttentionNet", "EncoderNet", "GroupedQueryLM", "NanoGPT", "SeparateAttention", "VisionTransformer"]


class FusedAttention(nn.Module):
    """Queries, keys and values from one layer.

    ``form`` says how the table of heads is written: ``attributes`` (heads and head width stored), ``open`` (heads a
    number in the call, the width -1), ``stream`` (everything from the width of the stream, as older code has it).
    """

    def __init__(self, dim: int, num_heads: int, form: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.form = form
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x)
        if self.form == "attributes":
            qkv = qkv.reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        elif self.form == "open":
            qkv = qkv.reshape(B, N, 3, 4, -1).permute(2, 0, 3, 1, 4)
        else:
            qkv = qkv.reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = attn.softmax(dim=-1)
        x = (attn @ v).transpose(1, 2)
        return self.proj(x.reshape(B, N, C) if self.form == "stream" else x.flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class ViTBlock(nn.Module):
    def __init__(self, dim: int, heads: int, form: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = FusedAttention(dim, heads, form)
        self.ls1 = nn.Parameter(0.5 * torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, form: str, dim: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.cls_token = nn.Parameter(0.5 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.5 * torch.randn(1, 17, dim))
        self.blocks = nn.Sequential(*[ViTBlock(dim, 4, form) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.blocks(x + self.pos_embed)
        return self.head(self.norm(x)[:, 0])


class SeparateAttention(nn.Module):
    """Three projections, ``view(B, T, heads, -1)``, torch's scaled product with its own scale, an encoder's mask."""

    def __init__(self, dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(40, dim)
        self.norm = nn.LayerNorm(dim)
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 48)
        self.fc = nn.Linear(dim, 7)

    def attend(self, x: Tensor, keep: Tensor) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.heads, -1).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.heads, -1).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
        return self.out_proj(out.transpose(1, 2).contiguous().view(B, T, -1))

    def forward(self, ids: Tensor) -> Tensor:
        keep = ids != 0
        x = self.embed(ids)
        x = x + self.attend(self.norm(x), keep)
        x = x + self.mlp(self.norm2(x))
        return self.fc((x * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half], x[..., half:]
    return x * cos + torch.cat((-x2, x1), dim=-1) * sin


class GroupedQueryAttention(nn.Module):
    """Every key/value head serves ``n_rep`` query heads; positions by rotation."""

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.n_rep = heads // kv_heads
        self.wq = nn.Linear(dim, heads * head_dim, bias=False)
        self.wk = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.wo = nn.Linear(heads * head_dim, dim, bias=False)
        frequencies = 1.0 / (100.0 ** (torch.arange(0, head_dim, 2).float() / head_dim))
        angles = torch.outer(torch.arange(32).float(), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bsz, seqlen, _ = x.shape
        xq = self.wq(x).view(bsz, seqlen, -1, self.head_dim).transpose(1, 2)
        xk = self.wk(x).view(bsz, seqlen, -1, self.head_dim).transpose(1, 2)
        xv = self.wv(x).view(bsz, seqlen, -1, self.head_dim).transpose(1, 2)
        cos, sin = self.get_buffer("cos")[:seqlen], self.get_buffer("sin")[:seqlen]
        xq, xk = rotate(xq, cos, sin), rotate(xk, cos, sin)
        keys = xk.repeat_interleave(self.n_rep, dim=1)
        values = xv[:, :, None].expand(-1, -1, self.n_rep, -1, -1).flatten(1, 2)
        out = F.scaled_dot_product_attention(xq, keys, values, is_causal=True)
        return self.wo(out.transpose(1, 2).reshape(bsz, seqlen, -1))


class GroupedQueryLM(nn.Module):
    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = GroupedQueryAttention(dim, heads=8, kv_heads=4, head_dim=6)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 48)
        self.head = nn.Linear(dim, 40, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x)


class CausalSelfAttention(nn.Module):
    def __init__(self, n_embd: int, n_head: int, block: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.n_embd = n_embd
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.register_buffer("bias", torch.tril(torch.ones(block, block)).view(1, 1, block, block))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / k.size(-1) ** 0.5)
        att = att.masked_fill(self.get_buffer("bias")[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class NanoGPT(nn.Module):
    """Decoder blocks with everything tied to the width of the stream, the head tied to the embedding."""

    def __init__(self, n_embd: int = 32) -> None:
        super().__init__()
        self.wte = nn.Embedding(40, n_embd)
        self.wpe = nn.Embedding(32, n_embd)
        self.ln = nn.ModuleList([nn.LayerNorm(n_embd) for _ in range(4)])
        self.attn = nn.ModuleList([CausalSelfAttention(n_embd, 4, 32) for _ in range(2)])
        self.mlp = nn.ModuleList([Mlp(n_embd, 64) for _ in range(2)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, 40, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        pos = torch.arange(0, idx.shape[1], dtype=torch.long, device=idx.device)
        x = self.wte(idx) + self.wpe(pos)
        for i, (attn, mlp) in enumerate(zip(self.attn, self.mlp, strict=True)):
            x = x + attn(self.ln[2 * i](x))
            x = x + mlp(self.ln[2 * i + 1](x))
        logits = self.lm_head(self.ln_f(x))
        loss = None if targets is None else F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        return logits, loss


class CrossAttentionNet(nn.Module):
    """``nn.MultiheadAttention`` over itself and over another sequence of another width."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.inp = nn.Linear(6, dim)
        self.self_attn = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.memory = nn.Linear(5, 20)
        self.cross = nn.MultiheadAttention(dim, 4, kdim=20, vdim=20, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 48), nn.ReLU(), nn.Linear(48, dim))
        self.fc = nn.Linear(dim, 7)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inp(x)
        x = x + self.self_attn(x, x, x, need_weights=False)[0]
        memory = self.memory(memory)
        attended, weights = self.cross(x, memory, memory)
        x = self.norm(x + attended)
        return self.fc(x + self.mlp(x)), weights


class EncoderNet(nn.Module):
    """Torch's own encoder layers."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, activation="gelu", batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(32, 7)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embed(ids)).mean(1))
