"""Optimal brain compression: every row greedily, then the rows against each other."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur import native
from secateur.core.select import keep_top
from secateur.core.solvers.layer import Layer, inverse_of
from secateur.core.solvers.refit import refit

__all__ = ["obc"]


def obc(layer: Layer) -> tuple[Tensor, Tensor]:
    """Each row loses ``argmin w_q^2 / [H^-1]_qq`` again and again, the rest refitted; steps compete over all rows.

    The costs of a row's steps are made to rise (running maximum), so that the cheapest steps of the layer are always
    first steps of their rows. What eliminating one by one arrives at is the least-squares fit of what is kept, which
    is how the new weights are computed.

    Args:
        layer: with ``remove`` or ``pattern``; what is removed already goes first. Memory: one gram per thread; time:
            ``rows * columns^3 / 3``.

    Returns:
        New weights and what is kept, ``[groups, rows, columns]``.

    Raises:
        ValueError: where the gram is not positive definite.

    Example:
        >>> weight, gram = torch.tensor([[[1.0, 0.5]]]).double(), torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]).double()
        >>> [part.tolist() for part in obc(Layer(weight, gram, torch.ones(1, 1, 2).bool(), remove=1))]
        [[[[1.25, 0.0]]], [[[True, False]]]]

    Reference:
        Frantar, Singh, Alistarh 2022, arXiv 2208.11580.
    """
    keep, of = (0, 0) if layer.pattern is None else (layer.pattern.keep, layer.pattern.of)
    kept, costs, places = layer.kept.clone(), list[Tensor](), list[Tensor]()
    size = layer.weight[0].numel()
    for group, (weight, gram, mask) in enumerate(zip(layer.weight, layer.gram, layer.kept, strict=True)):
        order, step_costs, counts = native.elimination_order(inverse_of(gram), weight, mask, keep, of)
        there = torch.arange(order.shape[1]) < counts[:, None]
        rows = torch.arange(order.shape[0])[:, None].expand_as(order)
        places.append((group * size + rows * order.shape[1] + order.long())[there])
        costs.append(step_costs.cummax(1).values[there])
    flat, every = kept.view(-1), torch.cat(places)
    if layer.remove is None:
        flat[every] = False
    else:
        wanted = layer.remove - int((~layer.kept).sum())
        flat[every[~keep_top(torch.cat(costs), len(every) - wanted)]] = False
    return refit(Layer(layer.weight, layer.gram, kept))
