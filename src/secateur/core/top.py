"""The mask of the highest of flat scores, exact, by one selection or by passes over pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.core.border import Pool, border
from secateur.core.canonical import wide
from secateur.core.streamed import PIECE, Pieces, in_pieces

__all__ = ["keep_by_passes", "keep_top", "row_borders"]


def keep_top(scores: Tensor, keep: int) -> Tensor:
    """Mask of the ``keep`` highest of flat scores; of equal ones the lower index goes first.

    Args:
        scores: [n], finite.
        keep: from 0 to n.

    Returns:
        Bool [n], True = kept, exactly ``keep`` of them.

    Example:
        >>> keep_top(torch.tensor([3.0, 1.0, 1.0, 1.0]), 2).tolist()
        [True, False, False, True]
    """
    n = scores.numel()
    assert scores.dim() == 1, scores.shape
    assert 0 <= keep <= n, (n, keep)
    if keep == n:
        return torch.ones(n, dtype=torch.bool, device=scores.device)
    if keep == 0:
        return torch.zeros(n, dtype=torch.bool, device=scores.device)
    scores = wide(scores)
    if scores.is_cpu and n > PIECE:
        return keep_by_passes(lambda: in_pieces(scores), n, keep)
    border = row_borders(scores.unsqueeze(0), keep).squeeze()
    mask = scores > border
    missing = keep - int(torch.count_nonzero(mask))
    if missing:
        ties = (scores == border).nonzero().squeeze(1)
        mask[ties[ties.numel() - missing :]] = True
    return mask


def keep_by_passes(passes: Pieces, n: int, keep: int) -> Tensor:
    """The mask of ``keep_top``, for scores that come in pieces."""
    first = wide(next(passes()))
    mask = torch.empty(n, dtype=torch.bool, device=first.device)
    if keep in (0, n):
        return mask.fill_(keep == n)
    least = border([Pool(passes)], keep, first.dtype)
    missing, equal, start = keep, 0, 0
    for piece in passes():
        above = torch.gt(piece, least, out=mask[start : start + piece.numel()])
        missing -= int(torch.count_nonzero(above))
        equal += int(torch.count_nonzero(piece == least))
        start += piece.numel()
    start = 0
    for piece in passes() if missing else ():
        ties = (piece == least).nonzero().squeeze(1)
        gone = max(0, min(ties.numel(), equal - missing))  # of equal scores the first in order go first
        mask[start + ties[gone:]] = True
        equal -= ties.numel()
        start += piece.numel()
    return mask


def row_borders(rows: Tensor, keep: int) -> Tensor:
    """[rows, n] -> [rows, 1], a score such that all above it stay, all below it go, and position decides among equals.

    ``topk`` on the smaller side is linear for any order of the scores; ``kthvalue`` on a descending million takes
    minutes (torch 2.13).
    """
    removed = rows.shape[1] - keep
    if keep <= removed:
        return rows.topk(keep, dim=1, sorted=False).values.amin(1, keepdim=True)
    return rows.topk(removed, dim=1, largest=False, sorted=False).values.amax(1, keepdim=True)
