"""Rules of zeros for operators that mix or move the places of a tensor: sums along axes, pooling, moves."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.model.graph.facts import FlowRule, Step
from secateur.model.graph.flow_elements import full

__all__ = ["ALONG", "GLU", "MAP", "MOVE", "SOFTMAX", "moved"]


def _axes(step: Step) -> list[int]:
    x, dims = step.inputs[0], step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
    if dims is None or isinstance(dims, bool) or dims == []:
        return list(range(x.dim()))
    return [dim % max(x.dim(), 1) for dim in ([dims] if isinstance(dims, int) else dims)]


def _along_varies(step: Step) -> list[Tensor]:
    """A sum, or a mean of different constants, depends on how many there are: on the size of the input."""
    x, facts, axes = step.inputs[0], step.facts[0], _axes(step)
    varies = facts.varies.any(axes, keepdim=True) if x.dim() else facts.varies
    if x.dim() and x.numel():
        other = facts.nonzero.any(axes, keepdim=True) if step.name == "sum" else _uneven(x, axes)
        varies = varies | other
    return [varies.reshape(out.shape) for out in step.outs]


def _uneven(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.amax(list(axes), keepdim=True) != x.amin(list(axes), keepdim=True)


def _softmax_varies(step: Step) -> list[Tensor]:
    return [full(out, True) for out in step.outs]


def _glu_halves(step: Step) -> tuple[int, Tensor, Tensor, Tensor]:
    dim = step.args[1] if len(step.args) > 1 else -1
    varies, gate = step.facts[0].varies.chunk(2, dim)
    return dim, varies, gate, step.facts[0].nonzero.chunk(2, dim)[0]


def _glu_varies(step: Step) -> list[Tensor]:
    """One half times the sigmoid of the other, which is never zero."""
    _, varies, gate, nonzero = _glu_halves(step)
    return [varies | (gate & nonzero)]


def _glu_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    dim, _, _, nonzero = _glu_halves(step)
    return [torch.cat([lives[0], lives[0] & nonzero], dim)]


def _along_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    x, live = step.inputs[0], torch.stack(lives).any(0)
    if live.shape == x.shape:
        live = live.any(_axes(step), keepdim=True) if x.dim() else live
    shape = [1 if axis in _axes(step) else size for axis, size in enumerate(x.shape)]
    return [live.reshape(shape).expand(x.shape)]


def _space(step: Step) -> list[int]:
    found = re.search(r"(\d)d", step.name)
    assert found is not None
    return [-1 - axis for axis in range(int(found[1]))]


def _map_varies(step: Step) -> list[Tensor]:
    x, facts, space = step.inputs[0], step.facts[0], _space(step)
    varies = facts.varies.any(space, keepdim=True) | _uneven(x, space)
    if step.name.startswith("avg_pool") and len(step.args) > 3 and any(step.args[3]):
        varies = varies | facts.nonzero.any(space, keepdim=True)  # the mean takes padded zeros in at the border
    return [varies.expand(out.shape) for out in step.outs]


def _map_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    live = torch.stack(lives).any(0).any(_space(step), keepdim=True)
    return [live.expand(step.inputs[0].shape), *(full(one, True) for one in step.inputs[1:])]


def moved(step: Step) -> list[Tensor]:
    """The tensors whose elements are moved; others say where to."""
    return [step.args[0]] if isinstance(step.args[0], Tensor) else list(step.args[0])


def _numbers(step: Step) -> Tensor:
    """Where each element of the result comes from: a number counted from 1 over all moved tensors; 0: from nowhere."""
    numbered, first = list[Tensor](), 1
    for one in moved(step):
        numbered.append(torch.arange(first, first + one.numel(), device=one.device).reshape(one.shape))
        first += one.numel()
    args = (numbered[0] if isinstance(step.args[0], Tensor) else numbered, *step.args[1:])
    if step.name == "constant_pad_nd":
        args = args[:2]
    return step.func(*args, **step.kwargs)


def _move_varies(step: Step) -> list[Tensor]:
    flat = [facts.varies.reshape(-1) for facts in step.facts[: len(moved(step))]]
    varies = torch.cat([flat[0].new_zeros(1), *flat])[_numbers(step)]
    return [varies | _framed(step) if step.name == "constant_pad_nd" else varies]


def _framed(step: Step) -> Tensor:
    """Constants with something else padded on beside them: what comes of it depends on the size of the input."""
    out, widths = step.outs[0], step.args[1]
    axes = [out.dim() - 1 - place for place in range(len(widths) // 2) if any(widths[2 * place : 2 * place + 2])]
    if axes == [1] or not axes:  # channels that are padded on are channels of their own
        return full(out, False)
    return _uneven(out, axes).expand(out.shape)


def _move_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    parts = moved(step)
    flat = torch.zeros(1 + sum(one.numel() for one in parts), dtype=torch.bool, device=lives[0].device)
    flat[_numbers(step)[lives[0]]] = True
    pieces = flat[1:].split([one.numel() for one in parts])
    needs = [piece.reshape(one.shape) for piece, one in zip(pieces, parts, strict=True)]
    return [*needs, *(full(one, True) for one in step.inputs[len(parts) :])]


ALONG = FlowRule(_along_varies, _along_needs)
SOFTMAX = FlowRule(_softmax_varies, _along_needs)
"""Equal weights depend on how many they are, so that nothing here counts as constant."""
GLU = FlowRule(_glu_varies, _glu_needs)
MAP = FlowRule(_map_varies, _map_needs)
"""Places of one map are mixed, and nothing else."""
MOVE = FlowRule(_move_varies, _move_needs)
