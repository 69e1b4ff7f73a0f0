"""Factors of the Gauss-Newton matrix, sample by sample: ``G = mean_n J_n^T H_n J_n = mean_n sum_c f_nc f_nc^T``.

J_n is the Jacobian of the outputs by the weights, H_n the Hessian of the sample's loss by its outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import hessian, vjp, vmap

from secateur.core.canonical import wide
from secateur.model.batches import loss_of_output
from secateur.model.evidence.functional import run_with
from secateur.model.evidence.samples import rows_of
from secateur.model.evidence.source import Request

__all__ = ["factors"]

_ELEMENTS = 2**23
"""Of factors held at a time, 32 MiB in float32; the activations of as many backward passes take a multiple."""

_MOST = 2**28
"""Of the factors of one sample."""


def factors(
    request: Request, weights: Mapping[str, Tensor], batches: Iterable[Any]
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Chunks of factors, name -> ``[n * c, *shape]``, and how many samples they are of.

    ``f_nc = J_n^T l_nc`` with ``H_n = sum_c l_nc l_nc^T``; negative eigenvalues of H_n (a loss not convex in the
    outputs) count as zero.

    Raises:
        ValueError: for batches that are no pairs with ``loss``, and for too many outputs times weights.
    """
    count = sum(weight.numel() for weight in weights.values())
    plain = {name: weight.detach() for name, weight in weights.items()}
    for batch in batches:
        if request.source.step is not None or not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise ValueError(
                "the Gauss-Newton matrix needs the outputs apart from the loss: give (inputs, labels) batches and "
                'loss=, or take hess="fisher" or "hutchinson"'
            )
        rows = rows_of(batch)
        with torch.no_grad():
            outputs = run_with(request.root, {}, lambda model, x=rows[0][0]: model(x)).numel()
        if outputs * count > _MOST:
            raise ValueError(
                f"{outputs} outputs times {count} weights are too many for the Gauss-Newton matrix; take "
                'hess="fisher" or "hutchinson", or fewer targets'
            )
        size = max(1, _ELEMENTS // (outputs * count))
        for start in range(0, len(rows), size):
            part = slice(start, min(start + size, len(rows)))
            made = _chunk(request, plain, batch[0][part], batch[1][part])
            yield {name: one.flatten(0, 1) for name, one in made.items()}, part.stop - part.start


def _chunk(request: Request, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Name -> ``[n, c, *shape]``; one by one where the model cannot be run for many samples at once."""

    def one(inputs: Tensor, label: Tensor) -> dict[str, Tensor]:
        return _of_sample(request, weights, inputs, label)

    with torch.no_grad():  # no graph of the parameters that are no targets; vjp differentiates all the same
        try:
            return vmap(one, randomness="different")(x, y)
        except (RuntimeError, NotImplementedError):
            made = [one(inputs, label) for inputs, label in zip(x, y, strict=True)]
        return {name: torch.stack([each[name] for each in made]) for name in weights}


def _of_sample(request: Request, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    made: Any = vjp(lambda own: run_with(request.root, own, lambda model: model(x[None])), weights)
    output, pull = made
    curvature: Any = hessian(lambda out: loss_of_output(out, (x[None], y[None]), request.source.loss))(output.detach())
    values, vectors = torch.linalg.eigh(wide(curvature).reshape(output.numel(), output.numel()))
    roots = (vectors * values.clamp(min=0).sqrt()).T.to(output.dtype)
    return vmap(pull)(roots.reshape(-1, *output.shape))[0]
