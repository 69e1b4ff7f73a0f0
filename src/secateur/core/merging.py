"""Which kept unit takes over from a removed one, and with what factor: ``W_next[:, kept] += c W_next[:, removed]``."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["equal_partners", "parallel_partners"]

_BLOCK = 512


def parallel_partners(weight: Tensor, bias: Tensor, *, kept: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """The kept row of the smallest angle, biases included, and ``c = ||v_removed|| / ||v_kept||``.

    Exact where ``v_removed = c v_kept`` with c > 0 and what lies between is positively homogeneous (ReLU, leaky ReLU,
    pooling). Nobody takes over rows that are orthogonal or opposed to all kept ones: c = 0. The catalogue excludes
    batch norms; here ``v`` is what a norm in eval mode makes of the row, so that one may stand between.

    Args:
        weight: ``[1, units, fan-in]``, batch norms folded in.
        bias: ``[1, units, n]``: one per producer, batch norms folded in, and what else tells units apart.
        kept: bool ``[units]``.
        removed: numbers of the units that go.

    Returns:
        For each removed unit the number of its partner, and c in float64.

    Example:
        >>> rows, kept = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]]), torch.tensor([True, False, True])
        >>> partner, factor = parallel_partners(rows, torch.zeros(1, 3, 0), kept=kept, removed=torch.tensor([1]))
        >>> partner.tolist(), factor.tolist()
        ([0], [2.0])
    """
    rows = torch.cat([weight, bias.to(weight)], 2)[0].double()
    norms = rows.square().sum(1).sqrt()
    unit = rows / norms[:, None].clamp(min=torch.finfo(torch.float64).tiny)
    alive = kept.nonzero().squeeze(1)
    best = [(unit[some] @ unit[alive].T).max(1) for some in _blocks(removed)]
    partner = alive[torch.cat([found.indices for found in best])]
    cosines = torch.cat([found.values for found in best])
    return partner, torch.where(cosines > 1e-12, norms[removed] / norms[partner], 0.0)


def equal_partners(weight: Tensor, bias: Tensor, *, kept: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """The kept row that is nearest, biases included; c = 1, the outgoing weights add up.

    Exact where the rows are equal and nothing between tells the two units apart.

    Args:
        weight: ``[1, units, fan-in]``, batch norms folded in.
        bias: ``[1, units, n]``: one per producer, batch norms folded in, and what else tells units apart.
        kept: bool ``[units]``.
        removed: numbers of the units that go.

    Returns:
        For each removed unit the number of its partner, and 1 in float64.

    Example:
        >>> rows, kept = torch.tensor([[[1.0], [1.5], [4.0]]]), torch.tensor([True, False, True])
        >>> equal_partners(rows, torch.zeros(1, 3, 0), kept=kept, removed=torch.tensor([1]))[0].tolist()
        [0]
    """
    rows = torch.cat([weight, bias.to(weight)], 2)[0].double()
    alive = kept.nonzero().squeeze(1)
    squares = rows[alive].square().sum(1)
    best = [(squares - 2 * rows[some] @ rows[alive].T).argmin(1) for some in _blocks(removed)]
    return alive[torch.cat(best)], torch.ones(len(removed), dtype=torch.float64, device=rows.device)


def _blocks(numbers: Tensor) -> list[Tensor]:
    return [numbers[first : first + _BLOCK] for first in range(0, len(numbers), _BLOCK)]
