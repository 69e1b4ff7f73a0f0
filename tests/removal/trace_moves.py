"""Moves of elements, one network each: concatenation, slices, splits, padding, picking by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.removal.traced_nets import Case, Made

__all__ = ["IMAGE", "LOST", "MOVES", "TOKENS", "C", "L", "also", "convs", "layers", "raw", "two"]

L, C = nn.Linear, nn.Conv2d
IMAGE, TOKENS = ((2, 6, 6),), ((4, 6),)
LOST = {"a.weight out": "."}
Part = Callable[[], Any]


def raw(*shape: int) -> Part:
    return lambda: nn.Parameter(torch.randn(*shape))


def also(width: int = 8) -> Part:
    return lambda: L(6, width)


def layers(forward: Callable[..., Any], a: Part, b: Part, **more: Part) -> Callable[[], nn.Module]:
    """Any two layers, something between them."""
    return lambda: Made(forward, a=a(), b=b(), **{name: part() for name, part in more.items()})


def two(forward: Callable[..., Any], wide: int = 8, **more: Part) -> Callable[[], nn.Module]:
    """Linear 6 -> 8, something, Linear ``wide`` -> 3."""
    return layers(forward, lambda: L(6, 8), lambda: L(wide, 3), **more)


def convs(forward: Callable[..., Any], wide: int = 8, hidden: int = 8, **more: Part) -> Callable[[], nn.Module]:
    """Convolution 2 -> ``hidden``, something, convolution ``wide`` -> 3."""
    return layers(forward, lambda: C(2, hidden, 3, padding=1), lambda: C(wide, 3, 3), **more)


def conv_linear(forward: Callable[..., Any], wide: int = 8) -> Callable[[], nn.Module]:
    return layers(forward, lambda: C(2, 8, 3), lambda: L(wide, 3))


def token(m: Made, x: Tensor) -> Tensor:
    h = torch.cat([m.token.expand(x.shape[0], -1, -1), m.a(x)], 1)
    return m.b((h + m.place)[:, 0])


def written_into_a_slice(m: Made, x: Tensor) -> Tensor:
    room = torch.zeros(x.shape[0], 10, dtype=x.dtype)
    room[:, 1:9].copy_(m.a(x))
    return m.b(room)


def index_put(m: Made, x: Tensor) -> Tensor:
    room = torch.zeros(5, 8, dtype=x.dtype)
    room[torch.tensor([0, 3])] = m.a(x)[:1].expand(2, -1)
    return m.b(room)[None].expand(x.shape[0], -1, -1)


def index_put_of_its_own_width(m: Made, x: Tensor) -> Tensor:
    h = m.a(x)
    room = torch.zeros_like(h)
    room[torch.arange(len(x))] = h.relu()
    return m.b(room)


def literal_parts(m: Made, x: Tensor) -> Tensor:
    first, second = m.a(x).split([3, 5], 1)
    return m.b(first) + m.c(second)


def told_parts(m: Made, x: Tensor) -> Tensor:
    first, second = m.a(x).split(m.parts, 1)
    return m.b(first) + m.c(second)


def chunks(m: Made, x: Tensor) -> Tensor:
    first, second = m.a(x).chunk(2, 1)
    return m.b(first) + m.c(second)


def halves(m: Made, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(h[:, :4] * h[:, 4:])


def by_buffer(m: Made, x: Tensor) -> Tensor:
    return m.b(m.a(x)[:, m.order])


def stacked(m: Made, x: Tensor) -> Tensor:
    return torch.stack([m.a(x), m.c(x)], 1)


def order(size: int = 8) -> Part:
    return lambda: torch.randperm(size)


MOVES = [
    Case("plain", two(lambda m, x: m.b(m.a(x).relu())), sizes=(8,), stays={"b.weight out": "output of the model"}),
    Case("token beside patches", two(token, token=raw(1, 1, 8), place=raw(1, 5, 8)), TOKENS, (8,)),
    Case("cat of two", two(lambda m, x: m.b(torch.cat([m.a(x), m.c(x).relu()], 1)), 12, c=also(4)), sizes=(8, 4)),
    Case("cat with the input", two(lambda m, x: m.b(torch.cat([x, m.a(x).tanh()], 1)), 14), sizes=(8,)),
    Case("cat along the batch", two(lambda m, x: m.b(torch.cat([m.a(x), m.c(x)])), c=also()), sizes=(8,)),
    Case("stack and sum", two(lambda m, x: m.b(stacked(m, x).sum(1)), c=also()), sizes=(8,)),
    Case(
        "stack and flatten keeps rows equal", two(lambda m, x: m.b(stacked(m, x).flatten(1)), 16, c=also()), sizes=(8,)
    ),
    Case("chunk", two(lambda m, x: m.b(torch.mul(*m.a(x).chunk(2, 1))), 4), sizes=(4,)),
    Case("chunk, read apart", two(chunks, 4, c=lambda: L(4, 3)), sizes=(4,)),
    Case(
        "unequal split of literal sizes",
        two(literal_parts, 3, c=lambda: L(5, 3)),
        stays={"a.weight out": r"m\.a\(x\)\.split.*split_sizes"},
        claimed=(3, 5),
    ),
    Case("unequal split by attribute", two(told_parts, 3, c=lambda: L(5, 3), parts=lambda: [3, 5]), sizes=(3, 5)),
    Case("halves by literals", two(halves, 4), stays={"a.weight out": r"return m\.b\(h.*must match"}, claimed=(4,)),
    Case("even and odd", two(lambda m, x: m.b(m.a(x)[:, ::2] * m.a(x)[:, 1::2]), 4), sizes=(4,)),
    Case("a part", two(lambda m, x: m.b(m.a(x)[:, 1:6]), 5), stays={"a.weight out": "constant size is cut out.*1:6"}),
    Case("one channel", two(lambda m, x: m.b(m.a(x)[:, 2:3] * m.c(x)), c=also()), sizes=(8,), stays=LOST),
    Case("last token", two(lambda m, x: m.b(m.a(x)[:, -1])), TOKENS, (8,)),
    Case("unbind channels", two(lambda m, x: m.b(sum(m.a(x).unbind(1))[:, None]), 1), stays={"a.weight out": "unbind"}),
    Case("pad channels", convs(lambda m, x: m.b(F.pad(m.a(x), (0, 0, 0, 0, 1, 2))), 11), IMAGE, (8,)),
    Case("pad space", convs(lambda m, x: m.b(F.pad(m.a(x), (1, 1, 2, 0)))), IMAGE, (8,)),
    Case(
        "pad, then shuffle pixels: the padded one stays",
        convs(lambda m, x: m.b(F.pixel_shuffle(F.pad(m.a(x), (0, 0, 0, 0, 0, 1)), 2)), 3, 11),
        IMAGE,
        (2,),
    ),
    Case("index by buffer", two(by_buffer, order=order()), stays={"a.weight out": r"picked by number in .*m\.order"}),
    Case(
        "index_select",
        two(lambda m, x: m.b(m.a(x).index_select(1, m.order)), order=order()),
        stays={"a.weight out": "picked by number in .*index_select"},
    ),
    Case("index tokens", two(by_buffer, order=order(4)), TOKENS, (8,)),
    Case("glu", two(lambda m, x: m.b(F.glu(m.a(x), 1)), 4), sizes=(4,)),
    Case("roll channels", two(lambda m, x: m.b(m.a(x).roll(2, 1))), stays={"a.weight out": "roll moves it.*roll"}),
    Case("roll all", two(lambda m, x: m.b(m.a(x).roll(2))), stays={"a.weight out": "roll moves it.*roll"}),
    Case("roll tokens", two(lambda m, x: m.b(m.a(x).roll(1, 1))), TOKENS, (8,)),
    Case("flip channels", two(lambda m, x: m.b(m.a(x).flip(1))), sizes=(8,)),
    Case("repeat_interleave channels", two(lambda m, x: m.b(m.a(x).repeat_interleave(2, 1)), 16), sizes=(8,)),
    Case("repeat channels", two(lambda m, x: m.b(m.a(x).repeat(1, 2)), 16), sizes=(8,)),
    Case("repeat_interleave rows", two(lambda m, x: m.b(m.a(x).repeat_interleave(2, 0))), sizes=(8,)),
    Case("pixel_unshuffle", convs(lambda m, x: m.b(F.pixel_unshuffle(m.a(x), 2)), 32), IMAGE, (8,)),
    Case("pixel_shuffle", convs(lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)), 2), IMAGE, (2,)),
    Case(
        "channel_shuffle keeps an even number",
        convs(lambda m, x: m.b(F.channel_shuffle(m.a(x), 2))),
        IMAGE,
        (4,),
    ),
    Case("flatten", conv_linear(lambda m, x: m.b(m.a(x).flatten(1)), 128), IMAGE, (8,)),
    Case(
        "literal view",
        conv_linear(lambda m, x: m.b(m.a(x).view(-1, 128)), 128),
        IMAGE,
        stays={"a.weight out": r"view\(-1, 128\).*invalid for input"},
        claimed=(8,),
    ),
    Case("permute", conv_linear(lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1))), IMAGE, (8,)),
    Case("patches by unfold", conv_linear(lambda m, x: m.b(F.unfold(m.a(x), 2).mT), 32), IMAGE, (8,)),
    Case("triangle of channels", two(lambda m, x: m.b(m.a(x).tril())), TOKENS, stays={"a.weight out": "tril moves it"}),
    Case(
        "diagonal of channels",
        two(lambda m, x: m.b(torch.diagonal(m.a(x), 0, 1, 2)), 4),
        TOKENS,
        stays={"a.weight out": "diagonal moves it"},
    ),
    Case("diagonal of space", conv_linear(lambda m, x: m.b(torch.diagonal(m.a(x), 0, 2, 3).mT)), IMAGE, (8,)),
    Case(
        "windows of channels", two(lambda m, x: m.b(m.a(x).unfold(1, 4, 2)), 4), stays={"a.weight out": "unfold moves"}
    ),
    Case(
        "copy_ into a part",
        two(written_into_a_slice, 10),
        stays={"a.weight out": "written into a part of a tensor.*copy_"},
    ),
    Case("rows written", two(index_put_of_its_own_width), sizes=(8,)),
    Case("rows of literal width", two(index_put), stays={"a.weight out": "room.torch.tensor.*mismatch"}, claimed=(8,)),
]
