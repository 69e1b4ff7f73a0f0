"""Gradients of single samples: many at once by ``torch.func``, one after another where the model does not allow it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from secateur.core.canonical import wide
from secateur.model.evidence.functional import alone, batches_of, loss_with
from secateur.model.evidence.passes import Found
from secateur.model.evidence.source import Request
from secateur.model.names import find_parameter

__all__ = ["FISHER_KINDS", "copies", "gather_fisher", "rows_of", "sample_gradients"]

FISHER_KINDS = {"fisher_diagonal": "mean over samples of the squared gradient of the sample's own loss"}

_ELEMENTS = 2**25
"""Of gradients held at a time, 128 MiB in float32."""


def gather_fisher(request: Request) -> Found:
    """``mean_n g_n^2``: neither the square of the mean, nor that of a batch's gradient, nor the last sample's.

    Raises:
        ValueError: for batches that cannot be taken apart into samples.
    """
    totals: dict[str, Tensor] = {}
    count = 0
    with request.ranks.together(), alone(request):
        for chunk in sample_gradients(request, copies(request), batches_of(request)):
            for name, gradients in chunk.items():
                count += len(gradients) if name == next(iter(chunk)) else 0
                totals[name] = totals.get(name, 0) + wide(gradients).square().sum(0)
    totals, count = request.ranks.sums(totals), request.ranks.total(count)
    return {"fisher_diagonal": {name: total / count for name, total in totals.items()}}


def copies(request: Request) -> dict[str, Tensor]:
    """The weights as leaves of their own; they share the model's memory."""
    return {name: find_parameter(request.root, name).detach().requires_grad_() for name in request.weights}


def sample_gradients(
    request: Request, weights: Mapping[str, Tensor], batches: Iterable[Any]
) -> Iterator[dict[str, Tensor]]:
    """Chunks of gradients, name -> ``[n, *shape]``, sample by sample in the order of the data.

    Pairs of tensors with a ``loss`` go through ``vmap``. What that cannot run (``step``, mappings, writing in place,
    branches on data) is run one sample at a time, to the same numbers.
    """
    size = max(1, _ELEMENTS // max(1, sum(weight.numel() for weight in weights.values())))
    together = request.source.step is None
    for batch in batches:
        rows = rows_of(batch)
        together = together and _is_pair(batch)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            made = _at_once(request, weights, batch, slice(start, start + len(part))) if together else None
            if made is not None:
                yield made
                continue
            together = False
            for row in part:
                yield {name: one[None] for name, one in _one(request, weights, row).items()}


def rows_of(batch: Any) -> list[Any]:
    """A batch taken apart into batches of one sample.

    Raises:
        ValueError: for what is not made of tensors with one row per sample.

    Example:
        >>> [tuple(x.shape) for x, y in rows_of((torch.zeros(2, 3), torch.zeros(2)))]
        [(1, 3), (1, 3)]
    """
    values = (
        list(batch.values()) if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    )
    lengths = {len(one) if isinstance(one, Tensor) and one.dim() > 0 else None for one in values}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            f"a batch is a {type(batch).__name__} with {len(values)} parts that are not all tensors of one length, so "
            "it cannot be taken apart into samples; give batches of tensors, one row per sample"
        )
    count = lengths.pop() or 0
    if isinstance(batch, Mapping):
        return [{key: one[at : at + 1] for key, one in batch.items()} for at in range(count)]
    if isinstance(batch, Tensor):
        return [batch[at : at + 1] for at in range(count)]
    return [type(batch)(one[at : at + 1] for one in values) for at in range(count)]


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2


def _one(request: Request, weights: Mapping[str, Tensor], row: Any) -> dict[str, Tensor]:
    made = torch.autograd.grad(loss_with(request, weights, row), list(weights.values()), allow_unused=True)
    pairs = zip(weights.items(), made, strict=True)
    return {n: torch.zeros_like(weight.detach()) if one is None else one.detach() for (n, weight), one in pairs}


def _at_once(
    request: Request, weights: Mapping[str, Tensor], batch: Sequence[Tensor], rows: slice
) -> dict[str, Tensor] | None:
    """None where the model, or its loss, cannot be run for many samples at once; one by one says what is wrong."""

    def loss(tensors: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_with(request, tensors, (x[None], y[None]))

    plain = {name: weight.detach() for name, weight in weights.items()}
    try:
        with torch.no_grad():  # no graph of the parameters that are no targets; grad differentiates all the same
            return vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(plain, batch[0][rows], batch[1][rows])
    except (RuntimeError, NotImplementedError):
        return None
