"""Criteria that ask how well a unit tells classes apart.

Evidence: ``activation_max`` and ``activation_pooled`` [channels, examples] = maximum and mean over positions of the
activation, ``labels`` [examples]; ``top_dependency`` [channels] = of the top layer the discriminant, of layers below
``mean_n |sum over positions of a dS_n/da|``, S_n the activation of the top's kept units in example n.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.core.criteria.gate import unit_length
from secateur.core.typed import unique
from secateur.types import CriterionEntry

__all__ = ["ROWS", "lda", "lda_dependency"]

_linalg: Any = torch.linalg  # has no types


def lda(
    activation_max: Tensor,
    activation_pooled: Tensor,
    labels: Tensor,
    *,
    pool: str = "max",
    ratio: str = "fisher",
    ridge: float = 1e-6,
    full: bool = False,
) -> Tensor:
    """Linear discriminant analysis, ``s_j = S_b,jj / S_w,jj``: units that vary as much inside classes as between go.

    ``S_b,jj = sum_c n_c (mu_cj - mu_j)^2`` and ``S_w,jj = sum_c sum_{n in c} (x_nj - mu_cj)^2`` of one number x per
    example. A constant unit has both zero, and score 0. The paper looks at the last convolution, whose units are nearly
    uncorrelated; for its way down to the layers below see ``lda_dependency``.

    Args:
        activation_max: maximum of the activation over positions, [channels, examples].
        activation_pooled: mean of the activation over positions, [channels, examples].
        labels: class of each example, [examples].
        pool: which of both is x, ``"max"`` or ``"mean"``.
        ratio: ``"fisher"``, or ``"icc"``: ``S_b / (S_b + S_w)``, the same order inside [0, 1].
        ridge: share of the mean of all ``S_w,jj`` that is added to each.
        full: with all covariances, ``s_j = sum_k lambda_k V_jk^2`` over the eigenvectors V_k of length 1 of
            ``(S_w + ridge I)^-1 S_b`` (an extension of ours); an eigenvalue problem of the layer's width.

    Returns:
        Scores, one per channel, at least float32.

    Raises:
        ValueError: for other words, a negative ridge, and labels of fewer than two classes.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 1.2, 3.0, 3.2], [1.0, 3.0, 1.0, 3.0]])
        >>> s = lda(x, x, torch.tensor([0, 0, 1, 1]))
        >>> bool(s[0] > s[1])
        True

    Reference:
        Tian, Arbel, Clark 2017, arXiv 1704.06305; 2018, arXiv 1803.08134. Formula from memory, not verified.
    """
    if pool not in ("max", "mean") or ratio not in ("fisher", "icc") or ridge < 0:
        raise ValueError(
            f"lda(pool={pool!r}, ratio={ratio!r}, ridge={ridge!r}): take pool 'max' or 'mean', ratio 'fisher' or "
            "'icc', and a ridge from 0"
        )
    given = wide(activation_max if pool == "max" else activation_pooled)
    between, within = _scatter(given.double(), labels.to(given.device), full=full)
    constant = (given == given[:, :1]).all(1)
    b, w = (between.diagonal(), within.diagonal()) if full else (between, within)
    damping = ridge * float(w.mean()) if float(w.sum()) > 0 else ridge * float(b.mean())
    if full:
        if ratio == "icc":
            raise ValueError("lda(ratio='icc', full=True): full=True has eigenvalues of the Fisher ratio alone")
        scores = _by_eigenvectors(between, within, damping)
    else:
        below = (w + damping + (b if ratio == "icc" else 0)).clamp(min=torch.finfo(torch.float64).tiny)
        scores = (b / below).clamp(max=torch.finfo(torch.float32).max)
    return torch.where(constant, torch.zeros_like(scores), scores).to(given.dtype)


def lda_dependency(
    top_dependency: Tensor,
    *,
    top: str | None = None,
    top_density: float | None = None,
    pool: str = "max",
    ridge: float = 1e-6,
) -> Tensor:
    """Linear discriminant analysis from the last layer down, ``s_u = t_u / sqrt(sum_v t_v^2)``.

    At the top ``t_j = S_b / (S_b + S_w)`` as in ``lda(ratio="icc")``; its best units are kept. Below
    ``t_u = mean_n |sum over positions of a_nu dS_n/da_nu|``, with ``S_n`` the sum over kept top units of the number
    that the discriminant looks at: a unit that feeds only what is discarded goes first. The paper follows
    deconvolutions; gradient times activation stands for them here. Positions of a unit may cancel, as may what raises
    one kept unit and lowers another by as much; examples may not.

    Every layer has length 1, so that layers compare at all; ``allocation="uniform"`` keeps of each what is kept of the
    top. Of a coupled group that the top has a part in, the top's discriminant speaks for all.

    Args:
        top_dependency: discriminant of the top, dependency of the top's kept units below, one per channel.
        top: name of the layer to start from; None: of the targets the one whose activation comes last. Layers behind
            it have to be excluded.
        top_density: share of its units that is kept; None: the density that ``sc.prune`` is asked for.
        pool: what the discriminant looks at, ``"max"`` or ``"mean"`` of the activation over positions.
        ridge: as for ``lda``.

    Returns:
        Scores, one per channel, at least float32; of length one over the layer.

    Example:
        >>> import torch
        >>> [round(score, 4) for score in lda_dependency(torch.tensor([3.0, 4.0])).tolist()]
        [0.6, 0.8]

    Reference:
        Tian, Arbel, Clark 2017, arXiv 1704.06305; 2018, arXiv 1803.08134. The way down by gradients is ours.
    """
    return unit_length(top_dependency)


def _scatter(x: Tensor, labels: Tensor, *, full: bool) -> tuple[Tensor, Tensor]:
    """Between and within classes, the diagonals or the whole."""
    own, counts = unique(labels)
    if len(counts) < 2:
        raise ValueError(
            f"lda: the {x.shape[1]} examples are all of class {int(labels[0])}; classes are told apart with at least "
            "two: read more batches (batches=), or shuffle the loader"
        )
    chosen = torch.nn.functional.one_hot(own, len(counts)).double()
    means = x @ chosen / counts
    away = (means - x.mean(1, keepdim=True)) * counts.double().sqrt()
    inside = x - means[:, own]
    if full:
        return away @ away.t(), inside @ inside.t()
    return away.square().sum(1), inside.square().sum(1)


def _by_eigenvectors(between: Tensor, within: Tensor, damping: float) -> Tensor:
    size = within.shape[0]
    factor, failed = _linalg.cholesky_ex(within + damping * torch.eye(size, dtype=within.dtype, device=within.device))
    if int(failed):
        raise ValueError(
            f"lda(full=True): the scatter of {size} units inside classes has no inverse at this ridge; take a larger "
            "one, such as ridge=0.001, or more examples"
        )
    half = _linalg.solve_triangular(factor, between, upper=False)
    turned = _linalg.solve_triangular(factor, half.t(), upper=False)
    values, vectors = _linalg.eigh((turned + turned.t()) / 2)
    directions = _linalg.solve_triangular(factor.t(), vectors, upper=True)
    directions = directions / directions.norm(dim=0)
    return directions.square() @ values.clamp(min=0.0)


ROWS: Mapping[str, CriterionEntry] = {
    "lda": CriterionEntry(
        lda,
        "unit",
        "mean",
        "batches",
        "S_b / S_w of activations: between by within classes",
        "Tian et al. 2017, arXiv 1704.06305",
        units=frozenset({"channel", "filter"}),
        batches=10,
    ),
    "lda_dependency": CriterionEntry(
        lda_dependency,
        "unit",
        "mean",
        "batches",
        "lda at the top; below mean_n |sum a dS/da|",
        "Tian et al. 2017, arXiv 1704.06305",
        units=frozenset({"channel", "filter"}),
        batches=10,
    ),
}
