"""Criteria that ask how well what is left makes up the outputs of the next layer.

Evidence: ``contribution_gram`` [units, units], ``G_ab = sum_n x_na x_nb`` with x_nc what unit c adds to the n-th
sampled output of what reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import CriterionEntry

__all__ = ["ROWS", "kept_scales", "thinet"]

_linalg: Any = torch.linalg  # has no types


def thinet(contribution_gram: Tensor) -> Tensor:
    """ThiNet, the place in the order in which the removed set T grows, ``min_c sum_n (sum_{j in T + c} x_nj)^2``.

    Signed sums may cancel: two units that undo each other go together, which no energy of single units sees. Places
    are divided by the number of units, so that ``global`` takes equal shares of all layers.

    Args:
        contribution_gram: [units, units].

    Returns:
        Scores, one per unit, in [0, 1), at least float32.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, -1.0, 0.2, 2.0], [0.5, -0.4, -0.1, 1.0], [2.0, -1.8, 0.1, -1.0]])
        >>> [round(4 * score) for score in thinet(x.T @ x).tolist()]
        [2, 1, 0, 3]

    Reference:
        Luo, Wu, Lin 2017, arXiv 1707.06342; ten places of each image from memory, not verified.
    """
    gram = wide(contribution_gram).double()
    size = gram.shape[0]
    scores = torch.zeros(size, dtype=torch.float64, device=gram.device)
    with_removed, left = torch.zeros_like(scores), torch.ones(size, dtype=torch.bool, device=gram.device)
    for place in range(size):
        growth = (gram.diagonal() + 2.0 * with_removed).masked_fill(~left, torch.inf)
        gone = int(growth.argmin())
        scores[gone], left[gone] = place / size, False
        with_removed += gram[:, gone]
    return scores.to(wide(contribution_gram).dtype)


def kept_scales(contribution_gram: Tensor, kept: Tensor, *, damp: float = 1e-8) -> Tensor:
    """Factors of the kept units that make up for the removed, ``min_s sum_n (sum_all x - sum_kept s_c x_nc)^2``.

    Args:
        contribution_gram: [units, units].
        kept: bool, [units].
        damp: share of the mean of the kept diagonal that pulls the factors to 1.

    Returns:
        [units], float64: 0 for removed units.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, -1.0, 0.2, 2.0], [0.5, -0.4, -0.1, 1.0], [2.0, -1.8, 0.1, -1.0]])
        >>> scales = kept_scales(x.T @ x, torch.tensor([True, False, False, True]))
        >>> [round(scale, 3) for scale in scales.tolist()]
        [0.152, 0.0, 0.0, 1.004]

    Reference:
        Luo, Wu, Lin 2017, arXiv 1707.06342.
    """
    gram, kept = contribution_gram.double(), kept.to(contribution_gram.device)
    own = gram[kept][:, kept]
    damping = damp * float(own.diagonal().mean()) + torch.finfo(torch.float64).tiny
    target = gram[kept].sum(1) + damping
    eye = torch.eye(len(own), dtype=torch.float64, device=own.device)
    scales = torch.zeros(len(gram), dtype=torch.float64, device=gram.device)
    scales[kept] = _linalg.solve(own + damping * eye, target)
    return scales


ROWS: Mapping[str, CriterionEntry] = {
    "thinet": CriterionEntry(
        thinet,
        "unit",
        "mean",
        "batches",
        "greedy least change of what reads the channels",
        "Luo et al. 2017, arXiv 1707.06342",
        units=frozenset({"channel", "in_channel"}),
        batches=10,
    ),
}
