"""Feed-forward parts of language models: gated units, RMS norms, experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DenseExperts", "GatedLM", "RootMeanSquareLM", "TopOneExperts"]


class GatedMlp(nn.Module):
    """SwiGLU with gate and up in one layer, divided by ``chunk`` or ``split``, or in two."""

    def __init__(self, dim: int, hidden: int, form: str) -> None:
        super().__init__()
        self.form = form
        self.hidden_features = hidden
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "chunk":
            gate, up = self.gate_up(x).chunk(2, dim=-1)
        elif self.form == "split":
            gate, up = self.gate_up(x).split(self.hidden_features, dim=-1)
        elif self.form == "sections":
            gate, up = torch.split(self.gate_up(x), [self.hidden_features, self.hidden_features], dim=-1)
        else:
            return self.down(F.glu(self.gate_up(x), dim=-1))
        return self.down(F.silu(gate) * up)


class GatedLM(nn.Module):
    def __init__(self, form: str, dim: int = 16, hidden: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, dim)
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2)])
        self.mlps = nn.ModuleList([GatedMlp(dim, hidden, form) for _ in range(2)])
        self.head = nn.Linear(dim, 40)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(x))
        return self.head(x)


class HandRMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class RootMeanSquareLM(nn.Module):
    """Pre-norm blocks with two-matrix SwiGLU; the norm is torch's or written out."""

    def __init__(self, by_hand: bool, dim: int = 24, hidden: int = 32) -> None:
        super().__init__()
        make = HandRMSNorm if by_hand else nn.RMSNorm
        self.embed = nn.Embedding(40, dim)
        self.norms = nn.ModuleList([make(dim, eps=1e-3) for _ in range(3)])
        self.gate = nn.ModuleList([nn.Linear(dim, hidden, bias=False) for _ in range(2)])
        self.up = nn.ModuleList([nn.Linear(dim, hidden, bias=False) for _ in range(2)])
        self.down = nn.ModuleList([nn.Linear(hidden, dim, bias=False) for _ in range(2)])
        self.head = nn.Linear(dim, 40, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for i in range(2):
            x = self.norms[i](h)
            h = h + self.down[i](F.silu(self.gate[i](x)) * self.up[i](x))
        return self.head(self.norms[2](h))


class TopOneExperts(nn.Module):
    """Every token goes to the best of four experts, which are modules; a switch layer."""

    def __init__(self, dim: int = 16, hidden: int = 24, experts: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, dim)
        self.norm = nn.LayerNorm(dim)
        self.router = nn.Linear(dim, experts)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim)) for _ in range(experts)]
        )
        self.head = nn.Linear(dim, 40)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        tokens = self.norm(x).reshape(-1, x.shape[-1])
        weight, index = self.router(tokens).softmax(-1).max(-1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            chosen = (index == number).nonzero(as_tuple=True)[0]
            out.index_add_(0, chosen, expert(tokens[chosen]) * weight[chosen, None])
        return self.head(x + out.view_as(x))


class DenseExperts(nn.Module):
    """The weights of all experts in 3-D parameters; every expert runs, a one-hot row chooses."""

    def __init__(self, dim: int = 16, hidden: int = 24, experts: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, dim)
        self.norm = nn.LayerNorm(dim)
        self.router = nn.Linear(dim, experts)
        self.w1 = nn.Parameter(0.3 * torch.randn(experts, dim, hidden))
        self.b1 = nn.Parameter(torch.zeros(experts, hidden))
        self.w2 = nn.Parameter(0.3 * torch.randn(experts, hidden, dim))
        self.head = nn.Linear(dim, 40)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        tokens = self.norm(x).flatten(0, 1)
        weight, index = self.router(tokens).softmax(-1).max(-1)
        chosen = F.one_hot(index, self.w1.shape[0]).to(tokens.dtype) * weight[:, None]
        hidden = F.gelu(torch.einsum("nd,edf->enf", tokens, self.w1) + self.b1[:, None])
        out = torch.bmm(hidden, self.w2)
        return self.head(x + torch.einsum("end,ne->nd", out, chosen).view_as(x))
