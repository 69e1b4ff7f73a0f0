"""Scores of single weights, made when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from secateur.core.asked import CriterionLike, resolve_criterion
from secateur.core.names import needs
from secateur.core.reduce import reduce_axes
from secateur.core.score import score
from secateur.core.select import check_scores
from secateur.core.streamed import Pieces, Streamed, in_pieces
from secateur.core.units import Weight
from secateur.types import CriterionEntry, Evidence, Layout, Reduce, Tensors, Unit

__all__ = ["streamed_score"]


def streamed_score(
    criterion: CriterionLike, evidence: Evidence, layout: Layout, unit: Unit, reduce: Reduce | None = None
) -> Tensors:
    """As ``score``; what an elementwise criterion gives to single weights is made when it is read, and not before.

    Returns:
        Parameter or group -> scores.
    """
    entry = resolve_criterion(criterion)
    if not (isinstance(entry, CriterionEntry) and _elementwise(entry) and unit == Weight()):
        return score(criterion, evidence, layout, unit, reduce)
    names = needs(entry.function)
    shapes = {key: unit.grid(one) for key, one in layout.items()}
    found = [(evidence.get(name, {}).get(key), shape) for key, shape in shapes.items() for name in names]
    if any(tensor is None or tuple(tensor.shape) != shape for tensor, shape in found):
        return score(criterion, evidence, layout, unit, reduce)  # which says what is wrong

    def passes(key: str) -> Pieces:
        def start() -> Iterator[Tensor]:
            flat = [evidence[name][key].flatten() for name in names]
            for pieces in zip(*map(in_pieces, flat), strict=True):
                yield reduce_axes(entry.function(*pieces), (), entry.reduce if reduce is None else reduce)

        return start

    made = Streamed(shapes, {key: passes(key) for key in layout})
    check_scores(made)
    return made


def _elementwise(entry: CriterionEntry) -> bool:
    """As the table says, of the function as it stands there: a setting may compare weights (``by="rank"``)."""
    return entry.elementwise and not isinstance(entry.function, partial)
