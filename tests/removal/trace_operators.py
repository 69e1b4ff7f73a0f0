"""Elementwise operators, reductions, norms, products and modules, one network each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.removal.trace_moves import IMAGE, LOST, TOKENS, C, L, also, convs, layers, raw, two
from tests.removal.traced_nets import Case, Made

__all__ = ["OPERATORS"]


def in_place(m: Made, x: Tensor) -> Tensor:
    h = m.a(x)
    h.add_(m.c(x)).relu_().mul_(2)
    return m.b(h)


def in_place_through_a_view(m: Made, x: Tensor) -> Tensor:
    h = m.a(x)
    h[:, 1] += m.c(x)[:, 0]
    return m.b(h)


def numpy_round_trip(m: Made, x: Tensor) -> Tensor:
    return m.b(torch.from_numpy(m.a(x).detach().numpy() * 2))


def data_and_detach(m: Made, x: Tensor) -> Tensor:
    return m.b(m.a(x).data) + m.c(x).detach().sum(1, keepdim=True)


def cross_attention(m: Made, x: Tensor, y: Tensor) -> Tensor:
    return m.b(m.attend(m.a(x), m.c(y), m.d(y), need_weights=False)[0])


def batch_norm(m: Made, x: Tensor) -> Tensor:
    return m.b(F.batch_norm(m.a(x), m.mean, m.var, m.scale, None).relu())


def gated(m: Made, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(h * m.c(h.mean((2, 3), keepdim=True)).sigmoid())


def outer(m: Made, x: Tensor) -> Tensor:
    return m.b((m.a(x)[:, :, None] * m.c(x)[:, None]).flatten(1))


def unregistered(m: Made, x: Tensor) -> Tensor:
    return m.b(m.a(x) * m.__dict__["plain"])


def with_plain_tensor() -> nn.Module:
    model = two(unregistered)()
    model.__dict__["plain"] = torch.rand(8, dtype=torch.float64)
    return model


def cross_attending() -> nn.MultiheadAttention:
    return nn.MultiheadAttention(8, 2, kdim=6, vdim=7, batch_first=True)


def says(words: str, layer: str = "a") -> dict[str, str]:
    return {f"{layer}.weight out": words}


UNSEEN = "a tensor that the trace did not see made is multiplied with weights"
SPACE = says("mixes it along space")

OPERATORS = [
    Case("softmax over tokens", two(lambda m, x: m.b(m.a(x).softmax(1))), TOKENS, (8,)),
    Case(
        "softmax over channels",
        two(lambda m, x: m.b(m.a(x).softmax(1))),
        stays=says("softmax runs over it in .*softmax"),
    ),
    Case("log_softmax", two(lambda m, x: m.b(m.a(x).log_softmax(1))), stays=says("log_softmax runs over it")),
    Case("max over channels", two(lambda m, x: m.b(m.a(x).amax(1, True)), 1), stays=says("amax runs over it")),
    Case("max with places", two(lambda m, x: m.b(m.a(x).max(1, True)[0]), 1), stays=says("max runs over it")),
    Case("max over tokens", two(lambda m, x: m.b(m.a(x).max(1)[0])), TOKENS, (8,)),
    Case("max of two", two(lambda m, x: m.b(torch.maximum(m.a(x), m.c(x))), c=also()), sizes=(8,)),
    Case(
        "largest of all",
        two(lambda m, x: m.b(m.a(x)) + m.c(x).max(), c=also()),
        sizes=(8,),
        stays=says("max runs", "c"),
    ),
    Case(
        "argmax",
        two(lambda m, x: m.b(m.a(x).relu()) + m.c(x).argmax(1, True), c=also()),
        sizes=(8,),
        stays=says("argmax runs over it", "c"),
    ),
    Case(
        "argmin of all",
        two(lambda m, x: m.b(m.a(x)) + m.c(x).argmin(), c=also()),
        sizes=(8,),
        stays=says("argmin runs over it", "c"),
    ),
    Case("cumsum", two(lambda m, x: m.b(m.a(x).cumsum(1))), stays=says("cumsum runs over it")),
    Case("sort", two(lambda m, x: m.b(m.a(x).sort(1)[0])), stays=says("sort runs over it")),
    Case("sort tokens", two(lambda m, x: m.b(m.a(x).sort(dim=1)[0])), TOKENS, (8,)),
    Case("topk", two(lambda m, x: m.b(m.a(x).topk(3, 1)[0]), 3), stays=says("topk runs over it")),
    Case("topk of tokens", two(lambda m, x: m.b(m.a(x).topk(2, 1)[0])), TOKENS, (8,)),
    Case("mean over channels", two(lambda m, x: m.b(m.a(x).mean(1, True)), 1), stays=LOST),
    Case("sum over channels", two(lambda m, x: m.b(m.a(x).relu().sum(1, True)), 1), sizes=(8,)),
    Case(
        "variance over channels", two(lambda m, x: m.b(m.a(x).var(1, keepdim=True)), 1), stays=says("variance is taken")
    ),
    Case("cosine direction", two(lambda m, x: m.b(F.normalize(m.a(x), dim=1))), sizes=(8,)),
    Case("product over channels", two(lambda m, x: m.b(m.a(x).prod(1, True)), 1), stays=says("prod runs over it")),
    Case("logsumexp", two(lambda m, x: m.b(m.a(x).logsumexp(1, True)), 1), stays=says("logsumexp runs over it")),
    Case("logsumexp over tokens", two(lambda m, x: m.b(m.a(x).logsumexp(1))), TOKENS, (8,)),
    Case("in place", two(in_place, c=also()), sizes=(8,)),
    Case("in place through a view", two(in_place_through_a_view, c=also()), stays=LOST),
    Case("detach and data", two(data_and_detach, c=also()), sizes=(8, 8)),
    Case("numpy round trip", two(numpy_round_trip), stays=says("nothing that the trace saw"), unknown=(UNSEEN,)),
    Case("unregistered tensor", with_plain_tensor, stays=says("plain.*must match"), claimed=(8,)),
    Case(
        "scalar parameters",
        two(lambda m, x: m.b(m.a(x) * m.s + m.t), s=lambda: nn.Parameter(torch.tensor(1.5)), t=raw(1)),
        sizes=(8,),
    ),
    Case("gate of size 1", two(lambda m, x: m.b(m.a(x) * m.c(x).sigmoid()), c=also(1)), sizes=(8,)),
    Case("outer product by broadcast", two(outer, 32, c=also(4)), stays=LOST),
    Case("where", two(lambda m, x: m.b(torch.where(m.a(x) > 0, m.a(x), m.c(x))), c=also()), sizes=(8,)),
    Case("where by row", two(lambda m, x: m.b(torch.where(x[:, :1] > 0, m.a(x), m.c(x))), c=also()), sizes=(8,)),
    Case("masked_fill", two(lambda m, x: m.b(m.a(x).masked_fill(m.c(x) > 0, 0.0)), c=also()), sizes=(8,)),
    Case("masked_fill by row", two(lambda m, x: m.b(m.a(x).masked_fill(x[:, :1] > 0, 0.0))), sizes=(8,)),
    Case("lerp and clamp", two(lambda m, x: m.b(torch.lerp(m.a(x), m.c(x), 0.3).clamp(-1, 1)), c=also()), sizes=(8,)),
    Case("prelu", two(lambda m, x: m.b(m.act(m.a(x))), act=lambda: nn.PReLU(8)), sizes=(8,)),
    Case("not zero at zero", two(lambda m, x: m.b(m.a(x).exp())), sizes=(8,)),
    Case(
        "einsum with a parameter",
        two(lambda m, x: m.b(torch.einsum("bti,io->bto", m.a(x), m.w)), w=raw(8, 8)),
        TOKENS,
        (8, 8),
    ),
    Case(
        "einsum of activations",
        two(lambda m, x: m.b(torch.einsum("btc,bsc,bsd->btd", m.a(x), m.c(x), m.d(x))), c=also(), d=also()),
        TOKENS,
        (8, 8),
    ),
    Case(
        "bilinear layer",
        two(lambda m, x: m.b(m.c(m.a(x), m.d(x))), c=lambda: nn.Bilinear(8, 5, 8), d=also(5)),
        stays=says("no rule for aten._trilinear in"),
        unknown=("aten._trilinear",),
    ),
    Case(
        "embedding",
        layers(lambda m, i: m.b(m.a(i)), lambda: nn.Embedding(9, 8), lambda: L(8, 3)),
        (("ids", 9, 4),),
        (8,),
    ),
    Case(
        "bag of embeddings",
        layers(lambda m, i: m.b(m.a(i)), lambda: nn.EmbeddingBag(9, 8), lambda: L(8, 3)),
        (("ids", 9, 4),),
        (8,),
    ),
    Case(
        "functional batch norm with buffers",
        convs(batch_norm, mean=lambda: torch.randn(8), var=lambda: torch.rand(8) + 0.5, scale=raw(8)),
        IMAGE,
        (8,),
    ),
    Case("squeeze and excite", convs(gated, c=lambda: C(8, 8, 1)), IMAGE, (8,)),
    Case("interpolate", convs(lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2, mode="bilinear"))), IMAGE, (8,)),
    Case("adaptive pooling", convs(lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), 4))), IMAGE, (8,)),
    Case("pooled channels", two(lambda m, x: m.b(F.max_pool1d(m.a(x)[:, None], 2)[:, 0]), 4), stays=SPACE),
    Case("averaged channels", two(lambda m, x: m.b(F.avg_pool1d(m.a(x)[:, None], 2)[:, 0]), 4), stays=SPACE),
    Case("averaged without a batch", two(lambda m, x: m.b(F.avg_pool1d(m.a(x), 2)), 4), stays=SPACE),
    Case(
        "convolution along channels",
        two(lambda m, x: m.b(m.c(m.a(x)[:, None])[:, 0]), c=lambda: nn.Conv1d(1, 1, 3, padding=1)),
        stays=says("lies along space"),
    ),
    Case(
        "grouped transposed convolution",
        convs(lambda m, x: m.b(m.c(m.a(x))), c=lambda: nn.ConvTranspose2d(8, 8, 3, groups=2)),
        IMAGE,
        (4, 4),
    ),
    Case(
        "depthwise", convs(lambda m, x: m.b(m.c(m.a(x))), 16, c=lambda: C(8, 16, 3, padding=1, groups=8)), IMAGE, (8,)
    ),
    Case("grouped", convs(lambda m, x: m.b(m.c(m.a(x))), c=lambda: C(8, 8, 3, padding=1, groups=4)), IMAGE, (2, 2)),
    Case(
        "layer norm",
        two(lambda m, x: m.b(m.norm(m.a(x))), norm=lambda: nn.LayerNorm(8)),
        stays=says(r"layer norm .*\(exact=False allows it\)"),
    ),
    Case(
        "layer norm, told", two(lambda m, x: m.b(m.norm(m.a(x))), norm=lambda: nn.LayerNorm(8)), sizes=(8,), exact=False
    ),
    Case(
        "layer norm of tokens", two(lambda m, x: m.b(m.norm(m.a(x).mT).mT), norm=lambda: nn.LayerNorm(4)), TOKENS, (8,)
    ),
    Case("rms norm", two(lambda m, x: m.b(m.norm(m.a(x))), norm=lambda: nn.RMSNorm(8, eps=1e-3)), sizes=(8,)),
    Case("group norm", convs(lambda m, x: m.b(m.norm(m.a(x))), norm=lambda: nn.GroupNorm(4, 8)), IMAGE, (4,)),
    Case(
        "instance norm", convs(lambda m, x: m.b(m.n(m.a(x))), n=lambda: nn.InstanceNorm2d(8, affine=True)), IMAGE, (8,)
    ),
    Case("local response norm", convs(lambda m, x: m.b(F.local_response_norm(m.a(x), 3))), IMAGE, stays=LOST),
    Case("checkpointed", two(lambda m, x: m.b(checkpoint(m.a, x, use_reentrant=False).relu())), sizes=(8,)),
    Case(
        "cross attention",
        two(cross_attention, c=lambda: L(5, 6), d=lambda: L(5, 7), attend=cross_attending),
        ((4, 6), (3, 5)),
        (6, 7),
        says("MultiheadAttention.*as wide as its output"),
        claimed=(8, 6, 7, 8),
    ),
    Case("used twice", two(lambda m, x: m.b(m.c(m.c(m.a(x)).relu())), c=lambda: L(8, 8)), sizes=(8,)),
    Case("product of tokens", two(lambda m, x: m.b(m.a(x) @ m.a(x).mT), 4), TOKENS, (8,)),
    Case("vector product", two(lambda m, x: m.b((m.a(x) @ m.v)[:, None]), 1, v=raw(8)), sizes=(8,)),
    Case(
        "fourier transform",
        two(lambda m, x: m.b(torch.fft.rfft(m.a(x), dim=1).real), 5),
        stays=says("no rule for aten._fft_r2c in .*rfft"),
        unknown=("aten._fft_r2c",),
    ),
    Case(
        "distances",
        two(lambda m, x: m.b(torch.cdist(m.a(x), m.c(x))), 4, c=also()),
        TOKENS,
        stays=says("no rule for aten._cdist_forward", "c"),
        unknown=("aten._cdist_forward",),
    ),
]
