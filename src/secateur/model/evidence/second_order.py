"""Products of the Hessian and the gradient, by differentiating twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.model.batches import forward_of, loss_of, loss_of_output
from secateur.model.evidence.functional import alone, batches_of
from secateur.model.evidence.passes import Found
from secateur.model.evidence.source import Request
from secateur.model.names import find_parameter

__all__ = ["HESSIAN_GRADIENT", "gather_hessian_gradient"]

HESSIAN_GRADIENT = {
    "hessian_gradient": "H g of the mean loss, outputs divided by the temperature, by two backward passes"
}

_TEMPERATURE = 200.0


def gather_hessian_gradient(request: Request) -> Found:
    """``H g`` with ``g`` the mean gradient of all batches, and H that of their mean loss.

    Pairs of tensors go through the model in two halves, for the sake of memory; both passes see the same batches. The
    loss of a half is taken to be a mean over its rows. ``step`` makes the loss by itself, so tempering is its own
    matter.

    Raises:
        ValueError: for batches whose output cannot be divided (mappings without ``step``), frozen weights, and models
            that cannot be differentiated twice.
    """
    with request.ranks.together(), alone(request):
        pieces = [piece for batch in batches_of(request) for piece in _halves(request, batch)]
        weights = {name: find_parameter(request.root, name) for name in request.weights}
        if frozen := [name for name, weight in weights.items() if not weight.requires_grad]:
            raise ValueError(f"{frozen[0]!r} does not require gradients; unfreeze it while scoring, or exclude it")
        leaves = list(weights.values())
        sums = _summed(weights, pieces, lambda loss: torch.autograd.grad(loss, leaves, allow_unused=True), request)
    rows = request.ranks.total(sum(count for _, count in pieces))
    gradient = [total / rows for total in request.ranks.sums(sums).values()]
    with request.ranks.together(), alone(request):
        sums = _summed(weights, pieces, lambda loss: _product(loss, leaves, gradient), request)
    return {"hessian_gradient": {name: total / rows for name, total in request.ranks.sums(sums).items()}}


def _summed(
    weights: Mapping[str, Tensor],
    pieces: Sequence[tuple[Any, int]],
    differentiate: Callable[[Tensor], Sequence[Tensor | None]],
    request: Request,
) -> dict[str, Tensor]:
    """Derivatives of each piece's mean loss, as often as it has rows."""
    totals = {name: torch.zeros_like(wide(weight.detach())) for name, weight in weights.items()}
    for piece, count in pieces:
        for total, one in zip(totals.values(), differentiate(_loss(request, piece)), strict=True):
            if one is not None:
                total += one.detach() * count
    return totals


def _product(loss: Tensor, leaves: list[Tensor], direction: list[Tensor]) -> tuple[Tensor | None, ...]:
    first = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
    inner = [(one * along.to(one)).sum() for one, along in zip(first, direction, strict=True) if one is not None]
    if not any(one.requires_grad for one in inner):
        return tuple(None for _ in leaves)  # the gradient does not depend on the weights: H = 0
    return torch.autograd.grad(torch.stack(inner).sum(), leaves, allow_unused=True)


def _loss(request: Request, batch: Any) -> Tensor:
    source, root = request.source, request.root
    if source.step is not None:
        return loss_of(root, batch, source.loss, source.step)
    output = forward_of(root, batch, None)
    if not isinstance(output, Tensor) or isinstance(batch, dict):
        raise ValueError(
            f"the model's output is {type(output).__name__}, and GraSP divides logits by a temperature; give "
            "step=lambda model, batch: the loss of the logits divided by it"
        )
    return loss_of_output(output / float(request.settings.get("temperature", _TEMPERATURE)), batch, source.loss)


def _halves(request: Request, batch: Any) -> Iterator[tuple[Any, int]]:
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(one, Tensor) for one in batch)
    if request.source.step is not None or not pair or batch[0].dim() == 0 or len(batch[0]) != len(batch[1]):
        yield batch, 1
        return
    rows = len(batch[0])
    middle = (rows + 1) // 2
    for part in (slice(0, middle), slice(middle, rows)):
        if part.start < part.stop:
            yield (batch[0][part], batch[1][part]), part.stop - part.start
