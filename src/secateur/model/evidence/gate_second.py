"""Second order at gates: the diagonal of the Hessian, gate by gate, by a second backward pass for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.batches import forward_of, loss_of
from secateur.model.evidence.functional import batches_of
from secateur.model.evidence.gate_hooks import GateHooks, stands
from secateur.model.evidence.gate_places import gate_layout
from secateur.model.evidence.passes import Found
from secateur.model.evidence.source import Request
from secateur.model.graph.trace import slow_paths
from secateur.model.quietly import quietly
from secateur.model.sharding import is_sharded

__all__ = ["SECOND_KINDS", "gate_seconds"]

SECOND_KINDS: Mapping[str, str] = {
    "gate_change_sq": "per unit: mean over batches of (-g + H / 2)^2, g and H the derivatives of the loss by a gate"
}


def gate_seconds(request: Request) -> Found:
    """``mean_b (-g_u + H_uu / 2)^2`` for a gate on each unit: what the loss changes by, to second order, without it.

    One backward pass through the backward pass for every unit of every layer and every batch.

    Args:
        request: what is asked.

    Returns:
        ``gate_change_sq`` -> layer -> [channels], float64.

    Raises:
        ValueError: for sharded models, and what gates of first order refuse.
    """
    root, source = request.root, request.source
    layout = gate_layout(root, request.layout)
    if sharded := [name for name, parameter in root.named_parameters() if is_sharded(parameter)]:
        raise ValueError(f"{sharded[0]!r} is sharded; second derivatives are not taken there: score before fully_shard")
    hooks, totals, count = GateHooks(), dict[str, Tensor](), 0
    # The fused kernels of attention have no second derivative.
    with request.ranks.together(), quietly(root, source.mode), torch.enable_grad(), slow_paths(), hooks.installed():
        for batch in batches_of(request):
            if not hooks.placed:
                hooks.place(stands(root, layout, _runner(root, batch, request)))
            hooks.begin()
            value = loss_of(root, batch, source.loss, source.step)
            for name, change in _changes(value, hooks.gates()).items():
                totals[name] = totals.get(name, 0) + change.square()
            count += 1
    totals, count = request.ranks.sums(totals), request.ranks.total(count)
    return {"gate_change_sq": {name: total / count for name, total in totals.items()}}


def _runner(root: nn.Module, batch: Any, request: Request) -> Any:
    return lambda: forward_of(root, batch, request.source.step)


def _changes(value: Tensor, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``-g + H / 2`` of every gate."""
    first = torch.autograd.grad(value, list(gates.values()), create_graph=True, materialize_grads=True)
    found: dict[str, Tensor] = {}
    for (name, gate), slope in zip(gates.items(), first, strict=True):
        curved = torch.zeros_like(gate)
        for unit in range(gate.numel()) if slope.requires_grad else ():
            (second,) = torch.autograd.grad(slope[unit], gate, retain_graph=True, materialize_grads=True)
            curved[unit] = second[unit]
        found[name] = -slope.detach().double() + curved.double() / 2
    return found
