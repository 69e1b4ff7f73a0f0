"""The table of operators: what each does to ids.

An operator that is not in the table and not marked as pointwise by torch freezes what it touches, and is named.
To add one, add its name to a row, or write a small function beside the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from secateur.model.graph.rules import contractions, elementwise, moves
from secateur.model.graph.trace import Tracer

__all__ = ["RULES", "Rule", "apply_rule"]

Rule: TypeAlias = Callable[[Tracer, Any, Any, Any, Any], None]
"""``(tracer, operator, args, kwargs, result)``; sets what is known of the result."""

_ROWS: Mapping[Rule, str] = {
    moves.same: "alias clone contiguous detach _to_copy lift_fresh copy dropout native_dropout_backward positive "
    "lift_fresh_copy detach_ _pin_memory is_pinned",
    moves.shape_change: "view _unsafe_view reshape flatten unflatten squeeze unsqueeze _reshape_alias view_copy",
    moves.move: "permute t transpose expand movedim flip repeat pixel_shuffle pixel_unshuffle rot90 swapaxes",
    moves.by_place: "roll unfold diagonal tril triu",
    moves.channel_shuffle: "channel_shuffle native_channel_shuffle",
    moves.patches: "im2col",
    moves.slice_: "slice",
    moves.split: "split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk",
    moves.select: "select",
    moves.unbind: "unbind",
    moves.cat: "cat",
    moves.glu: "glu",
    moves.stack: "stack",
    moves.pad: "constant_pad_nd",
    moves.index: "index index_select gather",
    contractions.matrix_product: "mm",
    contractions.batched: "bmm",
    contractions.addmm: "addmm baddbmm",
    contractions.vector_product: "mv dot",
    contractions.convolution: "convolution",
    contractions.grouped: "_grouped_mm",
    contractions.weight_norm: "_weight_norm_interface",
    contractions.embedding: "embedding _embedding_bag _embedding_bag_forward_only",
    elementwise.batch_norm: "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "_batch_norm_no_update _batch_norm_with_update cudnn_batch_norm",
    elementwise.layer_norm: "native_layer_norm",
    elementwise.group_norm: "native_group_norm",
    elementwise.rms_norm: "_fused_rms_norm",
    elementwise.reduce: "sum mean amax amin logsumexp linalg_vector_norm norm var var_mean std std_mean prod any all",
    elementwise.along_axis: "_softmax _safe_softmax _log_softmax cumsum cumprod sort topk argmax argmin max min "
    "logcumsumexp",
    elementwise.pool: "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d max_pool2d mkldnn_max_pool2d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d "
    "upsample_trilinear3d upsample_linear1d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
    "replication_pad2d replication_pad3d grid_sampler_2d grid_sampler_3d adaptive_avg_pool1d",
    elementwise.constant: "arange zeros ones empty full rand randn scalar_tensor eye linspace zeros_like ones_like "
    "empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full empty_strided "
    "new_empty_strided bernoulli _efficientzerotensor nonzero unique_consecutive _unique2 bincount histc randperm "
    "one_hot bucketize searchsorted",
    elementwise.scalar: "_local_scalar_dense equal is_nonzero",
    elementwise.write: "index_put index_put_ _index_put_impl_ index_add index_add_ scatter scatter_ scatter_add "
    "scatter_add_ index_copy index_copy_ masked_scatter masked_scatter_ slice_scatter select_scatter",
    elementwise.in_place: "copy_ fill_ zero_ normal_ uniform_",
}

RULES: Mapping[str, Rule] = {name: rule for rule, names in _ROWS.items() for name in names.split()}
"""Name of an ATen operator -> what it does to ids."""


def apply_rule(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Find the operator's rule and run it.

    Args:
        tracer: remembers what is known of tensors.
        func: the operator, with its overload.
        args: as it was called.
        kwargs: as it was called.
        out: what it returned.
    """
    name = func.overloadpacket.__name__
    if func is torch.ops.aten.max.other or func is torch.ops.aten.min.other:
        rule: Rule = elementwise.pointwise
    elif name in RULES:
        rule = RULES[name]
    elif name in _POINTWISE or torch.Tag.pointwise in func.tags:
        rule = elementwise.in_place if name.endswith("_") and not name.endswith("__") else elementwise.pointwise
    else:
        rule = elementwise.unknown
    rule(tracer, func, args, kwargs, out)


_POINTWISE = frozenset(
    (
        "hardswish",
        "hardswish_",
        "hardsigmoid",
        "mish",
        "softplus",
        "celu",
        "rrelu_with_noise",
        "masked_fill",
        "masked_fill_",
        "where",
        "_prelu_kernel",
        "native_dropout",
        "addcmul",
        "lerp",
    )
)
"""Elementwise operators that torch does not mark as such everywhere."""
