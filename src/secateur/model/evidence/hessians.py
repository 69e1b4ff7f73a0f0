"""Second derivatives of the loss by the weights: diagonals by four routes, and whole matrices of small networks.

``exact``: one backward pass for each weight. ``hutchinson``: mean of ``z * H z`` over random signs z. ``ggn``:
Gauss-Newton. ``fisher``: mean over samples of squared gradients. The first two are means over batches, the others over
samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.model.evidence.functional import alone, batches_of, loss_with, not_recomputed
from secateur.model.evidence.gauss_newton import factors
from secateur.model.evidence.passes import Found
from secateur.model.evidence.samples import copies, rows_of, sample_gradients
from secateur.model.evidence.source import Request

__all__ = ["DIAGONAL_KINDS", "gather_diagonal", "matrix"]

DIAGONAL_KINDS = {
    "hessian_diagonal": "second derivative of the loss by each weight, by the route that hess= names",
    "loss_change_sq": "mean over batches of the squared change of the loss, (w^2 H_ii / 2 - w g)^2",
}

_EXACT = 20_000
"""Weights for which the exact diagonal is found, one backward pass each."""

_WHOLE = 4_096
"""Weights for which a whole matrix is kept: 128 MiB in float64."""


def gather_diagonal(request: Request) -> Found:
    """Diagonals, and what second order makes of them batch by batch.

    Raises:
        ValueError: for an unknown route, and what that route refuses.

    Warns:
        UserWarning: where diagonals are negative; ``obd`` counts them as zero.
    """
    route, ranks = _route(request, _DIAGONALS), request.ranks
    weights, found, samples = copies(request), _empty(request), 0
    generator = torch.Generator().manual_seed(request.source.seed)
    with ranks.together(), alone(request), _whole_graph(request):
        for batch in batches_of(request):
            diagonal = route(request, weights, batch, generator)
            share = len(rows_of(batch)) if route in (_ggn, _fisher) else 1
            samples += share
            if "hessian_diagonal" in request.kinds:
                _add(found["hessian_diagonal"], {name: one * share for name, one in diagonal.items()})
            if "loss_change_sq" in request.kinds:
                _add(found["loss_change_sq"], {n: one * share for n, one in _change(request, weights, batch, diagonal)})
    samples = ranks.total(samples)
    found = {kind: ranks.sums(totals) for kind, totals in found.items()}
    means = {kind: {name: total / samples for name, total in totals.items()} for kind, totals in found.items()}
    _report(means.get("hessian_diagonal", {}))
    return means


def matrix(request: Request, weights: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Sums that make the whole matrix over all weights in their order, by ``exact``, ``ggn`` or ``fisher``.

    Returns:
        ``[N, N]`` in float64, and how many batches or samples it is the sum of.

    Raises:
        ValueError: for more weights than such a matrix is made for.
    """
    count = sum(weight.numel() for weight in weights.values())
    if count > _WHOLE:
        raise ValueError(
            f"a whole matrix of second derivatives over {count} weights: it is made for at most {_WHOLE}. Take fewer "
            "targets=, or 'woodfisher', which works in blocks"
        )
    route = _route(request, _MATRICES)
    total, samples = torch.zeros(count, count, dtype=torch.float64), 0
    total = total.to(next(iter(weights.values())).device)
    with _whole_graph(request):
        for batch in batches_of(request):
            one, share = route(request, weights, batch)
            total, samples = total + one, samples + share
    return total, samples


def _route(request: Request, routes: Mapping[str, Any]) -> Any:
    hess = request.settings.get("hess", "ggn")
    if hess not in routes:
        raise ValueError(f"hess={hess!r} for {', '.join(request.kinds)}; known are {', '.join(routes)}")
    return routes[hess]


def _whole_graph(request: Request) -> AbstractContextManager[None]:
    """Single samples' gradients go through checkpointing as any gradient does."""
    return nullcontext() if request.settings.get("hess") == "fisher" else not_recomputed(request)


def _empty(request: Request) -> dict[str, dict[str, Tensor]]:
    return {kind: {} for kind in request.kinds}


def _add(totals: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    for name, one in more.items():
        totals[name] = totals.get(name, 0) + one


def _change(
    request: Request, weights: Mapping[str, Tensor], batch: Any, diagonal: Mapping[str, Tensor]
) -> list[tuple[str, Tensor]]:
    slopes = torch.autograd.grad(loss_with(request, weights, batch), list(weights.values()), allow_unused=True)
    found: list[tuple[str, Tensor]] = []
    for (name, weight), slope in zip(weights.items(), slopes, strict=True):
        w = wide(weight.detach())
        first = torch.zeros_like(w) if slope is None else w * wide(slope)
        found.append((name, (0.5 * diagonal[name] * w.square() - first).square()))
    return found


def _first(request: Request, weights: Mapping[str, Tensor], batch: Any) -> list[Tensor]:
    """Gradients that can be differentiated again."""
    leaves = list(weights.values())
    made = torch.autograd.grad(loss_with(request, weights, batch), leaves, create_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, made, strict=True)]


def _again(values: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    if not values.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    made = torch.autograd.grad(values, leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, made, strict=True)]


def _exact(request: Request, weights: Mapping[str, Tensor], batch: Any, _: torch.Generator) -> dict[str, Tensor]:
    count = sum(weight.numel() for weight in weights.values())
    if count > _EXACT:
        raise ValueError(
            f'hess="exact" takes one backward pass for each of {count} weights; it is made for at most {_EXACT}. Take '
            'hess="hutchinson", "ggn" or "fisher"'
        )
    found: dict[str, Tensor] = {}
    for (name, weight), slope in zip(weights.items(), _first(request, weights, batch), strict=True):
        rows = [_again(one, [weight])[0].flatten()[at] for at, one in enumerate(slope.flatten())]
        found[name] = wide(torch.stack(rows).detach()).reshape(weight.shape)
    return found


def _hutchinson(
    request: Request, weights: Mapping[str, Tensor], batch: Any, generator: torch.Generator
) -> dict[str, Tensor]:
    probes, leaves = request.settings.get("probes", 10), list(weights.values())
    if type(probes) is not int or probes < 1:
        raise ValueError(f"probes={probes!r}: how many random directions, a whole number from 1")
    slopes, totals = _first(request, weights, batch), [torch.zeros_like(wide(leaf.detach())) for leaf in leaves]
    for _ in range(probes):
        signs = [_signs(leaf, generator) for leaf in leaves]
        along = torch.stack([(one * sign).sum() for one, sign in zip(slopes, signs, strict=True)]).sum()
        for total, sign, made in zip(totals, signs, _again(along, leaves), strict=True):
            total += wide(sign * made.detach())
    return {name: total / probes for name, total in zip(weights, totals, strict=True)}


def _signs(leaf: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, leaf.shape, generator=generator) * 2 - 1).to(leaf.detach())


def _ggn(request: Request, weights: Mapping[str, Tensor], batch: Any, _: torch.Generator) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}
    for chunk, _n in factors(request, weights, [batch]):
        _add(totals, {name: wide(one).square().sum(0) for name, one in chunk.items()})
    return {name: total / len(rows_of(batch)) for name, total in totals.items()}


def _fisher(request: Request, weights: Mapping[str, Tensor], batch: Any, _: torch.Generator) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}
    for chunk in sample_gradients(request, weights, [batch]):
        _add(totals, {name: wide(one).square().sum(0) for name, one in chunk.items()})
    return {name: total / len(rows_of(batch)) for name, total in totals.items()}


def _whole_exact(request: Request, weights: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, int]:
    leaves = list(weights.values())
    slopes = torch.cat([one.flatten() for one in _first(request, weights, batch)])
    rows = [torch.cat([made.flatten() for made in _again(one, leaves)]) for one in slopes]
    found = torch.stack(rows).detach().double()
    return (found + found.T) / 2, 1


def _whole_ggn(request: Request, weights: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, int]:
    total: Tensor | float = 0.0
    for chunk, _n in factors(request, weights, [batch]):
        total = total + _outer(chunk)
    assert isinstance(total, Tensor)  # a batch has samples
    return total, len(rows_of(batch))


def _whole_fisher(request: Request, weights: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, int]:
    total: Tensor | float = 0.0
    for chunk in sample_gradients(request, weights, [batch]):
        total = total + _outer(chunk)
    assert isinstance(total, Tensor)
    return total, len(rows_of(batch))


def _outer(chunk: Mapping[str, Tensor]) -> Tensor:
    flat = torch.cat([one.flatten(1).double() for one in chunk.values()], dim=1)
    return flat.T @ flat


def _report(diagonals: Mapping[str, Tensor]) -> None:
    negative = sum(int((one < 0).sum()) for one in diagonals.values())
    if negative:
        count = sum(one.numel() for one in diagonals.values())
        warnings.warn(
            f"{negative} of {count} second derivatives are negative: the network is at no minimum, or the estimate is "
            "noisy (more probes=, more batches=); obd counts them as zero",
            stacklevel=2,
        )


_DIAGONALS: Mapping[str, Callable[..., dict[str, Tensor]]] = {
    "exact": _exact,
    "hutchinson": _hutchinson,
    "ggn": _ggn,
    "fisher": _fisher,
}

_MATRICES: Mapping[str, Callable[..., tuple[Tensor, int]]] = {
    "exact": _whole_exact,
    "ggn": _whole_ggn,
    "fisher": _whole_fisher,
}
