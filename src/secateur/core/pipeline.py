"""The whole decision: evidence in, unit masks out."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from secateur.core.allocate import AllocationLike, allocate
from secateur.core.asked import CriterionLike
from secateur.core.bit_masks import BitMasks
from secateur.core.select import Within, select_each
from secateur.core.streamed_score import streamed_score
from secateur.core.units import parse_unit
from secateur.types import NM, Evidence, Layout, Reduce, Tensors, Unit

__all__ = ["decide"]


def decide(
    *,
    criterion: CriterionLike,
    unit: str | Unit | NM,
    allocation: AllocationLike,
    within: Within,
    sparsity: float | None,
    evidence: Evidence,
    layout: Layout,
    reduce: Reduce | None = None,
    min_density: float | None = 0.0,
    previous: Tensors | None = None,
) -> Mapping[str, Tensor]:
    """Which units stay: score, allocate, select.

    Scores that an ``elementwise`` criterion gives to single weights are computed piece by piece, as often as they are
    read, so that those of a large network never stand together; each mask is packed as soon as it is made.

    For n of m the pattern fixes the sparsity, so neither ``allocation`` nor ``min_density`` is read, and ``sparsity``
    is None or the pattern's own.

    Args:
        criterion: name, spec, row, combination or function.
        unit: name, spec, unit, ``"2 of 4"`` or ``NM(keep=2, of=4)``.
        allocation: name, row or function.
        within: window in which units compete: ``"tensor"``, ``"row"`` or ``NM``.
        sparsity: share of units to remove.
        evidence: what the criterion (and the allocation) reads.
        layout: the parameters to decide on.
        reduce: how a unit's weights make its score; None: as the criterion says.
        min_density: least share of units that a key keeps; 0.0 means one unit (no bias), None no protection.
        previous: unit masks so far; removed units stay removed.

    Returns:
        Bool unit masks in the grid shape, True = kept; they stand packed, and each look-up unpacks one.

    Raises:
        ValueError: for anything the parts refuse, and for a sparsity that contradicts the n:m pattern.

    Example:
        >>> import torch
        >>> from secateur.types import KeyLayout
        >>> weight = {"fc": torch.tensor([[1.0, -3.0], [0.5, 2.0]])}
        >>> masks = decide(
        ...     criterion="l1",
        ...     unit="weight",
        ...     allocation="global",
        ...     within="tensor",
        ...     sparsity=0.5,
        ...     evidence={"weight": weight},
        ...     layout={"fc": KeyLayout((2, 2))},
        ... )
        >>> masks["fc"].tolist()
        [[False, True], [False, True]]
    """
    resolved, window = parse_unit(unit)
    if window == "tensor":
        window = within
    elif within not in ("tensor", window):
        raise ValueError(f"unit={str(unit)!r} competes in groups of {window}, which within={within!r} contradicts")
    if isinstance(window, NM):
        if sparsity is not None and not math.isclose(sparsity, window.sparsity, abs_tol=1e-9):
            raise ValueError(
                f"sparsity={sparsity} with {window}: the pattern itself removes {window.sparsity:.4g} of the weights; "
                "leave the sparsity out"
            )
        scores = streamed_score(criterion, evidence, layout, resolved, reduce)
        return BitMasks(select_each(scores, {}, within=window, layout=layout, previous=previous))
    if sparsity is None:
        raise ValueError("sparsity is missing: give the share of units to remove, such as 0.9")
    scores = streamed_score(criterion, evidence, layout, resolved, reduce)
    keep = allocate(
        allocation,
        sparsity=sparsity,
        scores=scores,
        layout=layout,
        unit=resolved,
        evidence=evidence,
        min_density=min_density,
        previous=previous,
    )
    return BitMasks(select_each(scores, keep, within=window, layout=layout, previous=previous))
