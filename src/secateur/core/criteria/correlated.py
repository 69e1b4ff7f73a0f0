"""Redundancy by correlation of activations, pair by pair, and how the rest of a pair goes on for both.

Evidence: ``activation_covariance`` [channels, channels] over data and positions, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import CriterionEntry

__all__ = ["ROWS", "Fits", "activation_correlation", "fit_removed"]

_NO_VARIANCE = 1e-14
"""Of the largest variance of the layer: below it a unit is constant."""

_COPY = 1e-12
"""The distance of exact copies, behind that of constants."""


def activation_correlation(activation_covariance: Tensor, *, absolute: bool = False) -> Tensor:
    """Greedy Pearson distance of activations, ``s = 1 - r_ab`` when a unit goes for the sake of its closest other.

    Constant units go first, with 0: they have no correlation, and their mean can be folded. Then, of the pair with the
    greatest r among all that are left, the unit with the smaller variance (of equal ones the later), until one is
    left, with 2. Distances never fall on the way, so the scores are the order, and compare between layers. Of two
    copies exactly one goes early, where a score of each unit by its nearest neighbour would remove both. With
    ``merge=True`` kept channels stand in for removed ones by least squares (``merge_activations``).

    Args:
        activation_covariance: [channels, channels].
        absolute: also r near -1, ``1 - |r|``: a least-squares merge behind the activation function takes any sign.

    Returns:
        Scores, one per channel, from 0 to 2, at least float32.

    Example:
        >>> import torch
        >>> a = torch.tensor([[0.0, 1.0, 2.0, 3.0], [1.0, 2.9, 5.1, 7.0], [1.0, -1.0, -1.0, 1.0]])
        >>> [round(score, 4) for score in activation_correlation(torch.cov(a, correction=0)).tolist()]
        [0.0004, 2.0, 1.0]

    Reference:
        The pairs of Babaeizadeh, Smaragdis, Campbell 2016, arXiv 1611.06211 (NoiseOut).
    """
    covariance = wide(activation_covariance)
    variance = covariance.diagonal().double().cpu()
    r = _correlation(covariance.double().cpu())
    r = r.abs() if absolute else r
    alive = variance > _NO_VARIANCE * float(variance.max())
    scores = torch.where(alive, 2.0, 0.0).double()
    r.fill_diagonal_(-torch.inf)
    r[~alive] = r[:, ~alive] = -torch.inf
    best, partner = r.max(1)
    distance = _COPY
    while int(alive.sum()) > 1:
        a = int(best.argmax())
        b = int(partner[a])
        first, second = min(a, b), max(a, b)
        gone = first if float(variance[first]) < float(variance[second]) else second
        distance = max(distance, 1.0 - float(best[a]))
        scores[gone], alive[gone] = distance, False
        r[gone] = r[:, gone] = -torch.inf
        best[gone] = -torch.inf
        stale = alive & (partner == gone)
        best[stale], partner[stale] = r[stale].max(1)
    return scores.to(covariance)


@dataclass(frozen=True, slots=True)
class Fits:
    """What goes on for removed units: ``a_removed ~ alpha a_partner + beta``.

    Attributes:
        removed: numbers of the units.
        partner: for each the kept unit that it correlates with most, itself where it is constant.
        alpha: slopes; 0 for constants.
        beta: offsets.
    """

    removed: Tensor
    partner: Tensor
    alpha: Tensor
    beta: Tensor


def fit_removed(covariance: Tensor, mean: Tensor, kept: Tensor) -> Fits:
    """Least squares of each removed unit by the kept one it is closest to.

    ``alpha = cov(r, k) / var(k)``, ``beta = mean_r - alpha mean_k``.

    Args:
        covariance: of the activations, [channels, channels].
        mean: of the activations, [channels].
        kept: bool, [channels].

    Returns:
        The fits, float64.

    Example:
        >>> a = torch.tensor([[0.0, 1.0, 2.0, 3.0], [1.0, 2.9, 5.1, 7.0]])
        >>> fits = fit_removed(torch.cov(a, correction=0), a.mean(1), torch.tensor([True, False]))
        >>> round(float(fits.alpha), 4), round(float(fits.beta), 4)
        (2.02, 0.97)

    Reference:
        Babaeizadeh, Smaragdis, Campbell 2016, arXiv 1611.06211; formula from memory, not verified.
    """
    covariance, mean, kept = covariance.double().cpu(), mean.double().cpu(), kept.cpu()
    variance = covariance.diagonal()
    removed = torch.nonzero(~kept).flatten()
    r = _correlation(covariance).abs()
    constant = variance <= _NO_VARIANCE * float(variance.max())
    r[:, ~kept | constant] = -torch.inf
    if not bool((kept & ~constant).any()):
        return Fits(removed, removed, torch.zeros(len(removed), dtype=torch.float64), mean[removed])
    partner = r[removed].argmax(1)
    alpha = covariance[removed, partner] / variance[partner]
    alpha = torch.where(constant[removed], torch.zeros_like(alpha), alpha)
    partner = torch.where(constant[removed], removed, partner)
    return Fits(removed, partner, alpha, mean[removed] - alpha * mean[partner])


def _correlation(covariance: Tensor) -> Tensor:
    size = covariance.diagonal().clamp(min=0.0).sqrt()
    scale = torch.outer(size, size)
    return torch.where(scale > 0, covariance / scale, torch.zeros_like(covariance))


ROWS: Mapping[str, CriterionEntry] = {
    "activation_correlation": CriterionEntry(
        activation_correlation,
        "unit",
        "mean",
        "batches",
        "greedy 1 - r of correlated activations",
        "Babaeizadeh et al. 2016, arXiv 1611.06211",
        units=frozenset({"channel", "filter"}),
        batches=10,
        fit=fit_removed,
    ),
}
