"""Gradients of the loss behind a few steps of training by the weights before them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from secateur.core.canonical import to_grouped, wide
from secateur.model.evidence.functional import alone, batches_of, loss_with, not_recomputed
from secateur.model.evidence.gate_places import gate_layout
from secateur.model.evidence.passes import Found
from secateur.model.evidence.source import Request
from secateur.model.names import parameters_by_name
from secateur.types import KeyLayout, Layout

__all__ = ["META_KINDS", "gather_meta"]

META_KINDS = {
    "meta_grad": "gradient of the loss behind M steps of SGD by the weights before them",
    "meta_gate": "per filter: the same gradient by a gate on the filter's weights",
}


def gather_meta(request: Request) -> Found:
    """M = batches - 1 steps of SGD on copies of all parameters that can be trained, and the loss of the last batch.

    Raises:
        ValueError: for fewer than two batches, frozen weights, activation checkpointing, and what the loss refuses.
    """
    if request.source.batches < 2:
        raise ValueError(
            f"batches={request.source.batches}: prospect pruning takes one batch for each step, and one more"
        )
    names = _weights(request)
    with alone(request), not_recomputed(request):
        read = list(batches_of(request))
        own = parameters_by_name(request.root)
        if frozen := [name for name in names if not own[name].requires_grad]:
            raise ValueError(f"{frozen[0]!r} does not require gradients; unfreeze it while scoring, or exclude it")
        start = {name: one.detach().clone().requires_grad_() for name, one in own.items() if one.requires_grad}
        end = _train(request, start, list(islice(cycle(read), request.source.batches - 1)))
        last = read[(request.source.batches - 1) % len(read)]
        made = torch.autograd.grad(loss_with(request, end, last), [start[n] for n in names], allow_unused=True)
    pairs = zip(names, made, strict=True)
    slopes = {n: torch.zeros_like(start[n]) if one is None else one.detach() for n, one in pairs}
    found: Found = {}
    if "meta_grad" in request.kinds:
        found["meta_grad"] = {name: slopes[name] for name in request.weights}
    if "meta_gate" in request.kinds:
        gated = gate_layout(request.root, request.layout)
        found["meta_gate"] = {n: _per_filter(own[n].detach(), slopes[n], key) for n, key in gated.items()}
    return found


def _weights(request: Request) -> list[str]:
    wanted: dict[str, Any] = dict(request.weights) if "meta_grad" in request.kinds else {}
    gated: Layout = gate_layout(request.root, request.layout) if "meta_gate" in request.kinds else {}
    return list(dict.fromkeys([*wanted, *gated]))


def _train(request: Request, start: dict[str, Tensor], batches: Sequence[Any]) -> dict[str, Tensor]:
    settings = request.settings
    lr, momentum = float(settings.get("lr", 0.1)), float(settings.get("momentum", 0.0))
    through = not settings.get("first_order", False)
    now, moving = dict(start), {}
    for batch in batches:
        loss = loss_with(request, now, batch)
        made = torch.autograd.grad(loss, list(now.values()), create_graph=through, allow_unused=True)
        moved: dict[str, Tensor] = {}
        for (name, value), slope in zip(now.items(), made, strict=True):
            if slope is None:
                moved[name] = value
                continue
            step = slope if through else slope.detach()
            moving[name] = momentum * moving[name] + step if name in moving else step
            moved[name] = value - lr * moving[name]
        now = moved
    return now


def _per_filter(weight: Tensor, slope: Tensor, key: KeyLayout) -> Tensor:
    product = to_grouped(wide(weight) * wide(slope), key)
    return product.flatten(2).sum(2).flatten()
