"""Criteria that read what follows a layer: the scales of its batch norm."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.types import CriterionEntry

__all__ = ["ROWS", "bn_scale"]


def bn_scale(bn_scale: Tensor) -> Tensor:
    """Network slimming, ``s_c = |gamma_c|`` of the batch norm behind the unit, over all layers together.

    It means something after training with the penalty of ``slimming``, and where no other scale follows the norm. Of
    a channel that several norms carry: the mean. Unit ``channel`` takes gamma and beta along; with unit ``filter`` beta
    stays, and the unit becomes a constant. The paper's code removes one more than asked, by a threshold; here the
    count is exact, and every layer keeps at least one unit (``min_density``).

    Args:
        bn_scale: ``[groups, units, norms]``.

    Returns:
        Scores ``[units]``, at least float32.

    Raises:
        ValueError: for units without a norm.

    Example:
        >>> import torch
        >>> bn_scale(torch.tensor([[[0.5], [-0.25]]])).tolist()
        [0.5, 0.25]

    Reference:
        Liu, Li, Shen, Huang, Yan, Zhang 2017, arXiv 1708.06519.
    """
    if not bn_scale.shape[2]:
        raise ValueError("bn_scale: no batch norm stands behind these units; leave them out with exclude=")
    return bn_scale.abs().flatten(0, 1).mean(1)


ROWS: Mapping[str, CriterionEntry] = {
    "bn_scale": CriterionEntry(
        bn_scale,
        "unit",
        "mean",
        "none",
        "|gamma| of the batch norm behind the unit",
        "Liu et al. 2017, arXiv 1708.06519",
        units=frozenset({"channel", "filter"}),
    ),
}
