"""Rules of zeros for operators that work element by element, and for those that nothing is known of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.model.graph.facts import FlowRule, Step

__all__ = ["COPY", "MADE", "OPAQUE", "POINTWISE", "SEEN", "TIMES", "fold", "full"]


def full(tensor: Tensor, value: bool) -> Tensor:
    """One answer for every element."""
    return torch.full(tensor.shape, value, dtype=torch.bool, device=tensor.device)


def fold(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Any over the axes along which ``shape`` was broadcast."""
    extra = mask.dim() - len(shape)
    axes = [axis for axis in range(mask.dim()) if axis < extra or (shape[axis - extra] == 1 != mask.shape[axis])]
    return (mask.any(axes, keepdim=True) if axes else mask).reshape(tuple(shape))


def _opaque_varies(step: Step) -> list[Tensor]:
    random = torch.Tag.nondeterministic_seeded in step.func.tags or step.name.startswith(("empty", "new_empty"))
    any_ = random or any(bool(facts.varies.any()) for facts in step.facts)
    return [full(out, any_) for out in step.outs]


def _opaque_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    return [full(one, any(bool(live.any()) for live in lives)) for one in step.inputs]


def _all_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    return [full(one, True) for one in step.inputs]


def _no_variation(step: Step) -> list[Tensor]:
    return [full(out, False) for out in step.outs]


def _no_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    return [full(one, False) for one in step.inputs]


def _pointwise_varies(step: Step) -> list[Tensor]:
    varies = full(step.outs[0], False)
    for facts in step.facts:
        varies = varies | facts.varies
    return [varies] * len(step.outs)


def _pointwise_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    live = torch.stack(lives).any(0)
    return [fold(live, one.shape) for one in step.inputs]


def _times_varies(step: Step) -> list[Tensor]:
    if len(step.facts) < 2:
        return _pointwise_varies(step)
    a, b = step.facts
    return [((a.varies & b.nonzero) | (b.varies & a.nonzero)).expand(step.outs[0].shape)]


def _times_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    if len(step.facts) < 2:
        return _pointwise_needs(step, lives)
    a, b = step.facts
    return [fold(lives[0] & b.nonzero, a.varies.shape), fold(lives[0] & a.nonzero, b.varies.shape)]


def _copy_varies(step: Step) -> list[Tensor]:
    return [step.facts[1].varies.expand(step.outs[0].shape)]


def _copy_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    return [full(step.inputs[0], False), fold(lives[0], step.inputs[1].shape)]


OPAQUE = FlowRule(_opaque_varies, _opaque_needs)
"""Nothing is known: it varies if anything in it does, and needs all of its operands."""
SEEN = FlowRule(_opaque_varies, _all_needs)
"""Its operands are looked at by the program: they matter whatever becomes of the result."""
MADE = FlowRule(_no_variation, _no_needs)
"""Values that come from nothing in the model."""
POINTWISE = FlowRule(_pointwise_varies, _pointwise_needs)
TIMES = FlowRule(_times_varies, _times_needs)
"""Zero times anything is zero."""
COPY = FlowRule(_copy_varies, _copy_needs)
"""The second operand is written over the first."""
