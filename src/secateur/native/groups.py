"""n of m: the selection inside small groups of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.native.loading import core, never_traced, takes

__all__ = ["nm_select"]


@never_traced
def nm_select(scores: Tensor, keep: int, of: int) -> Tensor:
    """Keep the ``keep`` highest of every ``of`` neighbouring scores in a row.

    Among equal scores the lower index goes first. The ``cols % of`` scores left over at the end of a row stay.

    Args:
        scores: floating ``[rows, cols]``; groups run along the columns.
        keep: how many stay per group, ``0 <= keep <= of``.
        of: group size, at least 1.

    Returns:
        bool ``[rows, cols]``, True is kept.

    Raises:
        ValueError: the scores are not a floating matrix or hold NaN, or ``keep`` and ``of`` do not fit.

    Example:
        >>> nm_select(torch.tensor([[3.0, 1.0, 2.0, 2.0, 9.0]]), keep=2, of=4).int().tolist()
        [[1, 0, 0, 1, 1]]
    """
    if of < 1 or not 0 <= keep <= of:
        raise ValueError(f"keep={keep}, of={of}: expected 0 <= keep <= of and of >= 1, such as keep=2, of=4")
    if scores.ndim != 2 or not scores.is_floating_point():
        raise ValueError(f"scores: expected a floating matrix, got {scores.dtype} of shape {tuple(scores.shape)}")
    if bool(torch.isnan(scores).any()):
        raise ValueError(f"scores of shape {tuple(scores.shape)} hold NaN, which has no rank; look where it comes from")
    scores = scores.detach()
    # float64 has ranks that float32 cannot tell apart.
    if core is None or not takes(scores) or scores.dtype == torch.float64:
        return _nm_reference(scores, keep, of)
    rows, cols = scores.shape
    exact = scores.to(torch.float32).contiguous()
    kept = torch.empty(rows, cols, dtype=torch.bool)
    core.active.nm_select(exact.data_ptr(), rows, cols, keep, of, kept.data_ptr())
    return kept


def _nm_reference(scores: Tensor, keep: int, of: int) -> Tensor:
    rows, cols = scores.shape
    whole = cols // of * of
    kept = torch.ones(rows, cols, dtype=torch.bool, device=scores.device)
    # A stable ascending sort puts the lower index of a tie first, so it goes first.
    order = scores[:, :whole].reshape(rows, -1, of).argsort(dim=2, stable=True)
    grouped = torch.ones(order.shape, dtype=torch.bool, device=scores.device)
    grouped.scatter_(2, order[:, :, : of - keep], False)
    kept[:, :whole] = grouped.view(rows, whole)
    return kept
