"""The table of criteria. To add one: a function and its row in a file of this folder, a row in the conformance test."""

from __future__ import annotations

from collections.abc import Mapping

from secateur.core.criteria import (
    activation,
    correlated,
    costed,
    curvature,
    discriminant,
    entropy,
    gate,
    gradient,
    initial,
    inputs,
    norms,
    pairs,
    reconstruction,
    trajectory,
    weight,
)
from secateur.types import CriterionEntry

__all__ = ["CRITERIA"]

CRITERIA: Mapping[str, CriterionEntry] = {
    **weight.ROWS,
    **pairs.ROWS,
    **entropy.ROWS,
    **norms.ROWS,
    **gradient.ROWS,
    **gate.ROWS,
    **activation.ROWS,
    **inputs.ROWS,
    **correlated.ROWS,
    **discriminant.ROWS,
    **reconstruction.ROWS,
    **trajectory.ROWS,
    **initial.ROWS,
    **curvature.ROWS,
    **costed.ROWS,
}
