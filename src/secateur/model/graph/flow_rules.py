"""The table of operators for zeros: which results vary with the input, and which operands can change the result.

Every rule errs on the side of "varies" and "is needed". An operator that is not in the table varies wholly if anything
in it varies, and needs all of its operands. To add one, add its name to a row, or write two small functions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from secateur.model.graph.facts import FlowRule, Step
from secateur.model.graph.flow_elements import COPY, MADE, OPAQUE, POINTWISE, SEEN, TIMES
from secateur.model.graph.flow_layers import (
    BATCH_NORM,
    CONVOLUTION,
    EMBEDDING,
    NORM,
    PRODUCT,
    WEIGHT_NORM,
    evaluates,
)
from secateur.model.graph.flow_places import ALONG, GLU, MAP, MOVE, SOFTMAX, moved

__all__ = ["rule_of"]

_ROWS: Mapping[FlowRule, str] = {
    MADE: "arange zeros ones full scalar_tensor eye linspace zeros_like ones_like full_like new_zeros new_ones "
    "new_full zero_ lift_fresh",
    POINTWISE: "clone _to_copy contiguous lift_fresh_copy copy positive hardswish hardswish_ hardsigmoid mish softplus "
    "celu masked_fill masked_fill_ where _prelu_kernel addcmul lerp",
    TIMES: "mul mul_",
    COPY: "copy_",
    PRODUCT: "mm bmm addmm baddbmm",
    CONVOLUTION: "convolution",
    EMBEDDING: "embedding",
    BATCH_NORM: "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "_batch_norm_no_update cudnn_batch_norm",
    NORM: "native_layer_norm native_group_norm _fused_rms_norm",
    WEIGHT_NORM: "_weight_norm_interface",
    ALONG: "sum mean amax amin",
    SOFTMAX: "_softmax _log_softmax _safe_softmax",
    GLU: "glu",
    MAP: "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d "
    "upsample_trilinear3d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d",
    MOVE: "cat stack constant_pad_nd roll flip repeat pixel_shuffle pixel_unshuffle index index_select "
    "native_channel_shuffle channel_shuffle",
    SEEN: "_local_scalar_dense equal is_nonzero",
}
_TABLE: Mapping[str, FlowRule] = {name: rule for rule, names in _ROWS.items() for name in names.split()}
_SEEN_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def rule_of(step: Step) -> FlowRule:
    """The rule of an operator."""
    found = _TABLE.get(step.name)
    if found is MOVE:  # places are told by tensors that are the same for all inputs, or nothing is known of them
        told = any(bool(facts.varies.any()) for facts in step.facts[len(moved(step)) :])
        return MOVE if not told else SEEN if step.name == "index" else OPAQUE
    if not step.outs or _SEEN_TAGS & set(step.func.tags):
        return SEEN
    if found is POINTWISE or (found is None and _is_pointwise(step)):
        return POINTWISE if _fits(step) else OPAQUE
    if found is None or (found is BATCH_NORM and not evaluates(step)):
        return OPAQUE
    return found


def _is_pointwise(step: Step) -> bool:
    random = torch.Tag.nondeterministic_seeded in step.func.tags
    return torch.Tag.pointwise in step.func.tags and bool(step.inputs) and not random


def _fits(step: Step) -> bool:
    try:
        wide = torch.broadcast_shapes(*(one.shape for one in step.inputs))
    except RuntimeError:
        return False
    return all(out.shape == wide for out in step.outs)
