"""An exported graph without side effects, by renaming operators where that is enough: torch's own way takes seconds."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["made_functional"]

aten = torch.ops.aten

_IN_PLACE: dict[Any, Any] = {
    aten.relu_.default: aten.relu.default,
    aten.silu_.default: aten.silu.default,
    aten.gelu_.default: aten.gelu.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.add_.Tensor: aten.add.Tensor,
}
"""Operator that writes into its first argument -> the one that makes a new tensor."""

_FRESH = {
    *_IN_PLACE.values(),
    aten.linear.default,
    aten.conv2d.default,
    aten.matmul.default,
    aten.layer_norm.default,
    aten.batch_norm.default,
}
"""Operators whose result shares memory with nothing else."""


def made_functional(module: fx.GraphModule) -> bool:
    """Take the side effects out of a graph, if there are only those that need no analysis.

    Args:
        module: as `torch.export` gives it; changed in place, as a whole or not at all.

    Returns:
        False where something else writes: torch has to functionalise then.
    """
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    if not all(_is_simple(node) and not _found_later(node) for node in nodes):
        return False
    for node in nodes:
        if node.target in _IN_PLACE:
            node.target = _IN_PLACE[node.target]
        elif node.target is aten.batch_norm.default:
            _split_norm(module.graph, node)
    module.recompile()
    return True


def _is_simple(node: fx.Node) -> bool:
    target = node.target
    if target is aten.batch_norm.default:
        return len(node.args) >= 8 and node.args[5] is False and isinstance(node.args[3], fx.Node)
    if target in _IN_PLACE:
        written = node.args[0]
        if not isinstance(written, fx.Node) or len(written.users) != 1:
            return False
        return written.target in _FRESH or written.target in _IN_PLACE
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable
    return getattr(target, "__module__", "") == "_operator"  # arithmetic of sizes


def _found_later(node: fx.Node) -> bool:
    """Whether a length was free where this ran, and fixed by an operator behind it: shapes must be worked out again."""
    shape = getattr(node.meta.get("val"), "shape", ())
    return any(isinstance(n, torch.SymInt) and n.node.maybe_as_int() is not None for n in shape)


def _split_norm(graph: fx.Graph, node: fx.Node) -> None:
    """As functionalised graphs have it: an operator with three results, of which the first is read."""
    x, weight, bias, mean, var, _, momentum, eps = node.args[:8]
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    with graph.inserting_before(node):
        norm = graph.call_function(
            aten._native_batch_norm_legit_no_training.default, (x, weight, bias, mean, var, momentum, eps)
        )
        first = graph.call_function(operator.getitem, (norm, 0))
    norm.meta["val"], first.meta["val"] = (value, None, None), value
    node.replace_all_uses_with(first)
    graph.erase_node(node)
