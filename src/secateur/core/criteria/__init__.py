"""The table of criteria. To add one: a function and its row in a file of this folder, a row in the conformance test."""

from __future__ import annotations

from collections.abc import Mapping

from secateur.core.criteria import activation, curvature, gradient, initial, trajectory, weight
from secateur.types import CriterionEntry

__all__ = ["CRITERIA"]

CRITERIA: Mapping[str, CriterionEntry] = {
    **weight.ROWS,
    **gradient.ROWS,
    **activation.ROWS,
    **trajectory.ROWS,
    **initial.ROWS,
    **curvature.ROWS,
}
