"""From a model and a plan to unit masks, in one round or in several."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core import (
    CriterionLike,
    decide,
    evidence_needed,
    regrows,
    rounds_needed,
    settings_needed,
)
from secateur.core.schedules import geometric
from secateur.core.unit_channel import Channel, evidence_layout
from secateur.model.evidence import EXAMPLE_KINDS, Source, collect
from secateur.model.masked import masked
from secateur.model.masks import Masks
from secateur.model.names import find_parameter, unwrap
from secateur.model.sharding import full, share_from_first_rank
from secateur.train.plan import Plan
from secateur.types import Evidence, KeyLayout, Unit

__all__ = ["choose_masks", "to_trace"]


def choose_masks(
    model: nn.Module,
    plan: Plan,
    sparsity: float,
    source: Source,
    layout: Mapping[str, KeyLayout],
    before: Masks | None = None,
    *,
    rounds: int | None = None,
) -> dict[str, Tensor]:
    """Evidence to unit masks, the same on every rank; the model is not changed.

    In n rounds the share of units that is kept falls by the same factor in each, ``d_k = d_0 (d_n / d_0)^(k / n)``, and
    evidence is of the network as it is masked so far. What a round removed stays removed, or, for criteria that let it
    regrow, competes again with the value it had; what ``before`` removed stays removed either way.

    Args:
        model: as the user gave it.
        plan: the choices.
        sparsity: due now.
        source: of the evidence.
        layout: the targets.
        before: masks so far; what they removed stays removed.
        rounds: how many; None: as the criterion's row says.

    Returns:
        Parameter or group name -> bool mask in the unit's grid.

    Raises:
        ValueError: for several rounds to an n:m pattern, and for whatever evidence and decision refuse.
    """
    previous = None if before is None else _so_far(before, plan.parsed_unit, layout)
    if _count(plan, rounds) == 1:
        return _decide(model, plan, sparsity, source, layout, previous)
    root, unit, regrow = unwrap(model), plan.parsed_unit, regrows(plan.criterion)
    weights = {name: full(find_parameter(root, name)).detach() for name in evidence_layout(unit, layout)}
    dense = {"weight": {name: weight.clone() for name, weight in weights.items()}} if regrow else {}
    count = _count(plan, rounds)
    gone = 0.0 if previous is None else 1.0 - _share(previous)
    masks = previous
    for index in range(1, count + 1):
        due = geometric(index / count, gone, sparsity) if gone < sparsity else sparsity
        hidden = nullcontext() if masks is None else masked(root, unit.expand(masks, layout))
        with hidden:
            masks = _decide(model, plan, due, source, layout, previous if regrow else masks, dense)
    assert masks is not None  # at least two rounds
    return masks


def to_trace(criterion: CriterionLike, unit: Unit, example_inputs: Any) -> Any:
    """Example inputs as far as a trace needs them: not those that are for the evidence of the criterion alone.

    Example:
        >>> from secateur.core import parse_unit
        >>> to_trace("synflow", parse_unit("weight")[0], torch.ones(1, 3)) is None
        True
    """
    alone = not isinstance(unit, Channel) and not EXAMPLE_KINDS.isdisjoint(evidence_needed(criterion))
    return None if alone else example_inputs


def _count(plan: Plan, rounds: int | None) -> int:
    if rounds is not None and (type(rounds) is not int or rounds < 1):
        raise ValueError(f"rounds={rounds!r}: how many rounds to prune in, a whole number from 1")
    if plan.is_pattern:
        if rounds not in (None, 1):
            raise ValueError(f"rounds={rounds}: {plan.within} is reached at once; leave rounds out")
        return 1
    return rounds_needed(plan.criterion) if rounds is None else rounds


def _decide(
    model: nn.Module,
    plan: Plan,
    sparsity: float,
    source: Source,
    layout: Mapping[str, KeyLayout],
    previous: Mapping[str, Tensor] | None,
    known: Evidence | None = None,
) -> dict[str, Tensor]:
    root, unit = unwrap(model), plan.parsed_unit
    kinds = evidence_needed(plan.criterion)
    evidence = collect(root, kinds, layout, unit, source, settings_needed(plan.criterion))
    masks = decide(
        criterion=plan.criterion,
        unit=unit,
        allocation=plan.allocation,
        within=plan.window,
        sparsity=sparsity,
        evidence={**evidence, **(known or {})},
        layout=layout,
        reduce=plan.reduce,
        min_density=plan.min_density,
        previous=previous,
    )
    return share_from_first_rank(masks, root, model)


def _share(masks: Mapping[str, Tensor]) -> float:
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def _so_far(before: Masks, unit: Unit, layout: Mapping[str, KeyLayout]) -> dict[str, Tensor]:
    """The masks of these targets before this decision; targets without masks are all kept."""
    return {
        name: before.unit_masks.get(name, torch.ones(unit.grid(key), dtype=torch.bool)) for name, key in layout.items()
    }
