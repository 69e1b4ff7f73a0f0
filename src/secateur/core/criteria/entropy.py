"""Entropy of a unit's weights: how evenly they spread over their range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import CriterionEntry

__all__ = ["ROWS", "weight_entropy"]


def weight_entropy(
    weight: Tensor,
    *,
    bins: int = 10,
    range: Literal["layer", "unit"] = "layer",
    prune: Literal["high", "low"] = "high",
) -> Tensor:
    """Entropy of the histogram of a unit's weights, ``H = -sum_b p_b ln p_b`` in nats; ``s = -H``, or H for ``"low"``.

    Expositions (Nielson 2023) take units of HIGH entropy of weights away, the default; Luo and Wu 2017 take units of
    LOW entropy, but of activations, which is another criterion.

    Args:
        weight: ``[groups, units, fan-in]``.
        bins: of equal width; the last one holds its upper end.
        range: ``"layer"``: the bins run over the weights of all units; ``"unit"``: over its own, so that a unit and a
            thousand times it have one entropy.
        prune: ``"high"`` or ``"low"``: what goes first.

    Returns:
        Scores ``[units]``, at least float32.

    Raises:
        ValueError: for other words, and fewer than 2 bins.

    Example:
        >>> weight_entropy(torch.tensor([[[0.0, 0.0, 0.0, 1.0], [0.1, 0.4, 0.6, 0.9]]]), bins=4)
        tensor([-0.5623, -1.3863])

    Reference:
        Nielson 2023 (an article); entropy for pruning: Luo, Wu 2017, arXiv 1706.05791.
    """
    if type(bins) is not int or bins < 2:
        raise ValueError(f"weight_entropy(bins={bins!r}): a whole number from 2")
    if range not in ("layer", "unit") or prune not in ("high", "low"):
        raise ValueError(f"weight_entropy(range={range!r}, prune={prune!r}): take 'layer' or 'unit', 'high' or 'low'")
    rows = wide(weight).flatten(0, 1)
    whole = rows.flatten()[None] if range == "layer" else rows
    low, high = whole.amin(1, keepdim=True), whole.amax(1, keepdim=True)
    places = ((rows - low) / (high - low) * bins).nan_to_num(0.0).long().clamp_(0, bins - 1)  # one value: one bin
    counts = torch.zeros(len(rows), bins, dtype=torch.float64, device=rows.device)
    counts.scatter_add_(1, places, counts.new_ones(1, 1).expand(places.shape))
    shares = counts / rows.shape[1]
    entropy = -torch.xlogy(shares, shares).sum(1).to(rows.dtype)
    return -entropy if prune == "high" else entropy


ROWS: Mapping[str, CriterionEntry] = {
    "weight_entropy": CriterionEntry(
        weight_entropy,
        "unit",
        "mean",
        "none",
        "-H of the histogram of a unit's weights (prune='low': H)",
        "Nielson 2023; Luo & Wu 2017, arXiv 1706.05791",
        units=frozenset({"channel", "filter"}),
    ),
}
