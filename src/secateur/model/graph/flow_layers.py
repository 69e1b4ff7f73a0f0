"""Rules of zeros for what has weights: products, convolutions, embeddings, norms.

Sums of products are counted with ones in place of what may be other than zero. Counts are whole, so a half tells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.model.graph.facts import Facts, FlowRule, Step
from secateur.model.graph.flow_elements import OPAQUE, fold, full

__all__ = ["BATCH_NORM", "CONVOLUTION", "EMBEDDING", "NORM", "PRODUCT", "WEIGHT_NORM", "evaluates"]


def evaluates(step: Step) -> bool:
    """A batch norm that takes its statistics from buffers."""
    return isinstance(step.args[3], Tensor) and step.args[5] is not True


def _some(count: Tensor) -> Tensor:
    return count > 0.5


def _product_varies(step: Step) -> list[Tensor]:
    a, b = step.facts[-2:]
    count = a.varies.float() @ b.nonzero.float()
    if bool(b.varies.any()):
        count = count + a.nonzero.float() @ b.varies.float()
    varies = _some(count)
    return [varies | step.facts[0].varies if len(step.facts) == 3 else varies]


def _product_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    live = lives[0].float()
    a, b = (facts.nonzero.float() for facts in step.facts[-2:])
    needs = [_some(live @ b.transpose(-1, -2)), _some(a.transpose(-1, -2) @ live)]
    return [fold(lives[0], step.inputs[0].shape), *needs] if len(step.facts) == 3 else needs


def _convolved(step: Step, x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.aten.convolution(x.float(), weight.float(), None, *step.args[3:9])


def _convolution_varies(step: Step) -> list[Tensor]:
    x, weight = step.facts[:2]
    count = _convolved(step, x.varies, weight.nonzero)
    if bool(weight.varies.any()):
        count = count + _convolved(step, x.nonzero, weight.varies)
    varies = _some(count)
    if any(step.args[4]) or step.args[6]:
        # At a border a constant is summed with padded zeros. What comes of it depends on the size of the input.
        touched = _some(_convolved(step, x.nonzero & ~x.varies, weight.nonzero))
        varies = varies | touched.flatten(2).any(2).reshape(*touched.shape[:2], *[1] * (touched.dim() - 2))
    if len(step.facts) == 3:
        varies = varies | step.facts[2].varies.reshape(-1, *[1] * (varies.dim() - 2))
    return [varies]


def _convolution_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    x, weight = (facts.nonzero.float() for facts in step.facts[:2])
    into, kernel, _ = torch.ops.aten.convolution_backward(
        lives[0].float(), x, weight, None, *step.args[3:9], [True, True, False]
    )
    axes = [axis for axis in range(lives[0].dim()) if axis != 1]
    bias = [lives[0].any(axes)] if len(step.facts) == 3 else []
    return [_some(into), _some(kernel), *bias]


def _embedding_varies(step: Step) -> list[Tensor]:
    """A column of the table that holds one value is that value, whichever row is read."""
    table, picks = step.facts[:2]
    one_value = (step.inputs[0] == step.inputs[0][:1]).all(0) & ~table.varies.any(0)
    varies = ~one_value if bool(picks.varies.any()) else table.varies.any(0)
    return [varies.expand(step.outs[0].shape)]


def _embedding_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    columns = lives[0].reshape(-1, step.inputs[0].shape[1]).any(0)
    return [columns.expand(step.inputs[0].shape), full(step.inputs[1], True)]


def _of(step: Step, tensor: Any) -> Facts | None:
    return step.of(tensor) if isinstance(tensor, Tensor) else None


def _per_channel(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (like.dim() - 2))


def _others(step: Step, first: Tensor) -> list[Tensor]:
    return [first, *(full(out, True) for out in step.outs[1:])]


def _batch_norm_varies(step: Step) -> list[Tensor]:
    x, scale = step.facts[0], _of(step, step.args[1])
    varies = x.varies if scale is None else x.varies & _per_channel(scale.nonzero, x.varies)
    for facts in step.facts[1:]:
        varies = varies | _per_channel(facts.varies, x.varies)
    return _others(step, varies)


def _batch_norm_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    live, scale = lives[0], _of(step, step.args[1])
    through = live if scale is None else live & _per_channel(scale.nonzero, live)
    axes = [axis for axis in range(live.dim()) if axis != 1]
    affine = [one for one in step.args[1:3] if isinstance(one, Tensor)]
    rest = [(live if any(one is a for a in affine) else through).any(axes) for one in step.inputs[1:]]
    return [through, *rest]


def _rows(step: Step, mask: Tensor) -> Tensor:
    """The mask laid out so that the norm runs over the last axis."""
    if step.name == "native_group_norm":
        return mask.reshape(mask.shape[0], step.args[6], -1)
    return mask.reshape(*mask.shape[: mask.dim() - len(step.args[1])], -1)


def _affine_of(step: Step) -> list[Any]:
    places = {"native_group_norm": (1, 3), "native_layer_norm": (2, 4), "_fused_rms_norm": (2, 3)}[step.name]
    return list(step.args[slice(*places)])


def _wide(step: Step, mask: Tensor) -> Tensor:
    """A mask of a scale or a shift, beside the values that it meets."""
    return _per_channel(mask, step.inputs[0]) if step.name == "native_group_norm" else mask


def _norm_varies(step: Step) -> list[Tensor]:
    x = step.facts[0]
    rows = _rows(step, x.varies)
    varies = rows.any(-1, keepdim=True).expand(rows.shape).reshape(x.varies.shape)
    if step.name == "_fused_rms_norm":
        varies = varies & x.nonzero  # no mean is taken off, so that a zero stays one
    scale, *shift = [_of(step, tensor) for tensor in _affine_of(step)]
    if scale is not None:
        varies = (varies & _wide(step, scale.nonzero)) | _wide(step, scale.varies)
    for facts in shift:
        varies = varies if facts is None else varies | _wide(step, facts.varies)
    return _others(step, varies)


def _norm_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    live, x = lives[0], step.facts[0]
    scale = _of(step, _affine_of(step)[0])
    through = live if scale is None else live & _wide(step, scale.nonzero)
    through = through & x.nonzero if step.name == "_fused_rms_norm" else through
    rows = _rows(step, through)
    needs = [rows.any(-1, keepdim=True).expand(rows.shape).reshape(live.shape)]
    for tensor in (one for one in _affine_of(step) if isinstance(one, Tensor)):
        met = live & x.nonzero if step.name == "_fused_rms_norm" else live
        needs.append(fold(met, _wide(step, tensor).shape).reshape(tensor.shape))
    return needs


def _weight_norm_needs(step: Step, lives: list[Tensor]) -> list[Tensor]:
    """``g v / |v|`` row by row: a row of no length has no direction that matters."""
    dim = step.args[2] if len(step.args) > 2 else 0
    axes = [axis for axis in range(lives[0].dim()) if axis != dim]
    rows = lives[0].any(axes, keepdim=True)
    length = rows.reshape(step.inputs[1].shape)
    return [(rows & step.facts[1].nonzero.reshape(rows.shape)).expand(lives[0].shape), length]


PRODUCT = FlowRule(_product_varies, _product_needs)
CONVOLUTION = FlowRule(_convolution_varies, _convolution_needs)
EMBEDDING = FlowRule(_embedding_varies, _embedding_needs)
BATCH_NORM = FlowRule(_batch_norm_varies, _batch_norm_needs)
"""With statistics from buffers."""
NORM = FlowRule(_norm_varies, _norm_needs)
WEIGHT_NORM = FlowRule(OPAQUE.varies, _weight_norm_needs)
