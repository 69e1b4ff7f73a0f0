"""Second order at gates: the diagonal of the Hessian, by second backward passes for some gates at a time."""

from __future__ import annotations

import warnings
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


_AT_ONCE = 16
"""Units whose rows of the Hessian are found together."""


def gate_seconds(request: Request) -> Found:
    """``mean_b (-g_u + H_uu / 2)^2`` for a gate on each unit: what the loss changes by, to second order, without it.

    g and H are of each batch's own loss: the squares are averaged, not the derivatives. A row of H is one backward pass
    through the backward pass; 16 rows of a layer go at once, by ``vmap``, or one after another, to the same numbers,
    where the model does not allow that (or its memory).

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
        curved = _curvature(slope, gate) if slope.requires_grad else torch.zeros_like(slope)
        found[name] = -slope.detach().double() + curved.double() / 2
    return found


def _curvature(slope: Tensor, gate: Tensor) -> Tensor:
    """The derivative of each slope by its own gate ``[units]``."""
    units = torch.eye(gate.numel(), dtype=slope.dtype, device=slope.device)
    pieces: list[Tensor] = []
    size = _AT_ONCE
    for first in range(0, len(units), _AT_ONCE):
        rows = units[first : first + _AT_ONCE]
        made = _rows(slope, gate, rows) if size > 1 else None
        if made is None:
            size = 1
            made = torch.stack([_row(slope, gate, row) for row in rows])
        pieces.append((made * rows).sum(1))
    return torch.cat(pieces)


def _rows(slope: Tensor, gate: Tensor, rows: Tensor) -> Tensor | None:
    """Some rows of the Hessian at once; None where there is an operator that cannot, or too little memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # operators that vmap runs one by one
        try:
            return torch.autograd.grad(
                slope, gate, rows, retain_graph=True, is_grads_batched=True, materialize_grads=True
            )[0]
        except (RuntimeError, NotImplementedError):
            return None


def _row(slope: Tensor, gate: Tensor, row: Tensor) -> Tensor:
    return torch.autograd.grad(slope, gate, row, retain_graph=True, materialize_grads=True)[0]
