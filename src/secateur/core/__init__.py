"""Tensors in, tensors out: criteria, units, allocations, exact selection and schedules.

Nothing here has seen a module: parameters arrive as named tensors with a ``Layout`` beside them.
"""

from __future__ import annotations

from secateur.core.allocate import AllocationLike, allocate
from secateur.core.allocations import ALLOCATIONS, resolve_allocation
from secateur.core.combine import Combination, combine
from secateur.core.criteria import CRITERIA
from secateur.core.names import (
    format_spec,
    hyperparameters,
    lookup,
    needs,
    parse_spec,
    resolve,
    spec_of,
)
from secateur.core.pipeline import decide
from secateur.core.schedules import SCHEDULES, resolve_schedule, update_steps
from secateur.core.score import (
    CriterionLike,
    batches_needed,
    criterion_spec,
    evidence_needed,
    regrows,
    resolve_criterion,
    rounds_needed,
    score,
    settings_needed,
)
from secateur.core.select import Within, check_scores, keep_top, removed_count, select
from secateur.core.units import UNITS, parse_unit, unit_name, unit_sizes

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "SCHEDULES",
    "UNITS",
    "AllocationLike",
    "Combination",
    "CriterionLike",
    "Within",
    "allocate",
    "batches_needed",
    "check_scores",
    "combine",
    "criterion_spec",
    "decide",
    "evidence_needed",
    "format_spec",
    "hyperparameters",
    "keep_top",
    "lookup",
    "needs",
    "parse_spec",
    "parse_unit",
    "regrows",
    "removed_count",
    "resolve",
    "resolve_allocation",
    "resolve_criterion",
    "resolve_schedule",
    "rounds_needed",
    "score",
    "select",
    "settings_needed",
    "spec_of",
    "unit_name",
    "unit_sizes",
    "update_steps",
]
