"""From a model and a plan to unit masks, in one round or in several."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from secateur.core import (
    CRITERIA,
    CriterionLike,
    decide,
    evidence_needed,
    needs,
    regrows,
    resolve_criterion,
    settings_needed,
)
from secateur.core.bit_masks import BitMasks, all_kept
from secateur.core.schedules import geometric
from secateur.core.unit_channel import Channel, evidence_layout
from secateur.model.batches import rereadable
from secateur.model.evidence import EXAMPLE_KINDS, Source, collect
from secateur.model.masked import masked
from secateur.model.masks import Masks
from secateur.model.merge_activations import fitted_values
from secateur.model.merging import check_merge, merged_values
from secateur.model.names import find_parameter, unwrap
from secateur.model.norms import norms_behind, with_norms
from secateur.model.ranks import ranks_of
from secateur.model.sharding import full, share_from_first_rank
from secateur.train.plan import Plan
from secateur.types import CriterionEntry, Evidence, KeyLayout, Unit

__all__ = ["choose_masks", "choose_with_merge", "choose_with_update", "to_trace"]


def choose_masks(
    model: nn.Module,
    plan: Plan,
    sparsity: float,
    source: Source,
    layout: Mapping[str, KeyLayout],
    before: Masks | None = None,
    *,
    behind: Mapping[str, str] | None = None,
) -> Mapping[str, Tensor]:
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
        behind: batch norms that count as part of the layers before them (``norms_behind``).

    Returns:
        Parameter or group name -> bool mask in the unit's grid.

    Raises:
        ValueError: for whatever evidence and decision refuse.
    """
    root, unit, regrow = unwrap(model), plan.parsed_unit, regrows(plan.criterion)
    previous = None if before is None else _so_far(before, unit, layout)
    if plan.rounds_each == 1:
        evidence = _evidence(model, plan, source, layout, sparsity, behind=behind)
        return _decide(model, plan, sparsity, evidence, layout, previous)
    weights = {name: full(find_parameter(root, name)).detach() for name in evidence_layout(unit, layout)}
    dense = {"weight": {name: weight.clone() for name, weight in weights.items()}} if regrow else {}
    count = plan.rounds_each
    gone = 0.0 if previous is None else 1.0 - _share(previous)
    masks = previous
    for index in range(1, count + 1):
        due = geometric(index / count, gone, sparsity) if gone < sparsity else sparsity
        hidden = nullcontext() if masks is None else masked(root, unit.expand(masks, layout))
        with hidden:
            evidence = {**_evidence(model, plan, source, layout, due, behind=behind), **dense}
            masks = _decide(model, plan, due, evidence, layout, previous if regrow else masks)
    assert masks is not None  # at least two rounds
    return masks


def choose_with_merge(
    model: nn.Module,
    plan: Plan,
    sparsity: float,
    source: Source,
    layout: Mapping[str, KeyLayout],
    before: Masks | None = None,
) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """Unit masks, and new values of what reads the units, as kept ones take over; the model is not changed.

    By rows, pairs and their factors are those of units as the batch norms behind them pass them on. By least squares,
    what layers read is that of the model as it stands, so that what earlier masks took has nothing to hand on.

    Args:
        model: as the user gave it.
        plan: the choices.
        sparsity: due now.
        source: of the evidence, and of what is read; its example goes through the model.
        layout: the targets, groups.
        before: masks so far; what they removed stays removed.

    Returns:
        Unit masks, and parameter name -> values in its shape.

    Raises:
        ValueError: for criteria that do not merge, groups in which merging by rows cannot be exact, and data-parallel
            models whose processes would fit to their own data.
    """
    root, entry = unwrap(model), check_merge(plan.criterion, plan.parsed_unit)
    if entry.fit is not None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise ValueError(
                "merge=True fits weights in every process to its own data; prune before wrapping the model"
            )
        source = replace(source, data=rereadable(source.data, source.batches))  # for the scores, and for the fits
        masks = choose_masks(model, plan, sparsity, source, layout, before)
        how: dict[str, Any] = {"step": source.step, "batches": source.batches}
        return masks, fitted_values(root, layout, masks, source.data, entry.fit, **how)[0]
    behind = norms_behind(root, layout, source.example)
    masks = choose_masks(model, plan, sparsity, source, layout, before, behind=behind)
    return masks, merged_values(root, entry, layout, masks, source.example, behind)


def choose_with_update(
    model: nn.Module,
    plan: Plan,
    sparsity: float,
    source: Source,
    layout: Mapping[str, KeyLayout],
    before: Masks | None = None,
) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """Unit masks in one round, and new values of the weights from the same evidence; the model is not changed.

    Args:
        model: as the user gave it.
        plan: the choices.
        sparsity: due now.
        source: of the evidence.
        layout: the targets.
        before: masks so far; what they removed stays removed.

    Returns:
        Unit masks, and parameter name -> values in its shape.

    Raises:
        ValueError: for a criterion without an update, several rounds, and data-parallel models, whose processes would
            move their weights differently.
    """
    entry = resolve_criterion(plan.criterion)
    if not isinstance(entry, CriterionEntry) or entry.update is None:
        known = ", ".join(name for name, row in CRITERIA.items() if row.update is not None)
        raise ValueError(f"update=True: criterion {plan.criterion!r} has no update of the kept weights; {known} have")
    if plan.rounds_each > 1:
        raise ValueError("update=True moves weights once, so it goes with one round; call prune several times instead")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError("update=True moves weights in every process by its own data; prune before wrapping the model")
    root, unit, kinds = unwrap(model), plan.parsed_unit, needs(entry.update)[2:]
    previous = None if before is None else _so_far(before, unit, layout)
    evidence = _evidence(model, plan, source, layout, sparsity, kinds)
    masks = _decide(model, plan, sparsity, evidence, layout, previous)
    scored = evidence_layout(unit, layout)
    weights = {name: find_parameter(root, name).detach() for name in scored}
    removed = {name: ~mask for name, mask in unit.expand(masks, layout).items() if name in scored}
    return masks, entry.update(weights, removed, *[evidence[kind] for kind in kinds])


def to_trace(criterion: CriterionLike, unit: Unit, example_inputs: Any) -> Any:
    """Example inputs as far as a trace needs them: not those that are for the evidence of the criterion alone.

    Example:
        >>> import torch
        >>> from secateur.core import parse_unit
        >>> to_trace("synflow", parse_unit("weight")[0], torch.ones(1, 3)) is None
        True
    """
    alone = not isinstance(unit, Channel) and not EXAMPLE_KINDS.isdisjoint(evidence_needed(criterion))
    return None if alone else example_inputs


def _evidence(
    model: nn.Module,
    plan: Plan,
    source: Source,
    layout: Mapping[str, KeyLayout],
    sparsity: float,
    more: tuple[str, ...] = (),
    behind: Mapping[str, str] | None = None,
) -> Evidence:
    kinds = tuple(dict.fromkeys((*evidence_needed(plan.criterion), *more)))
    known = replace(source, density=1.0 - sparsity)
    found = collect(model, kinds, layout, plan.parsed_unit, known, settings_needed(plan.criterion))
    return with_norms(unwrap(model), layout, found, behind) if behind else found


def _decide(
    model: nn.Module,
    plan: Plan,
    sparsity: float,
    evidence: Evidence,
    layout: Mapping[str, KeyLayout],
    previous: Mapping[str, Tensor] | None,
) -> Mapping[str, Tensor]:
    with ranks_of(model).together():
        masks = decide(
            criterion=plan.criterion,
            unit=plan.parsed_unit,
            allocation=plan.allocation,
            within=plan.window,
            sparsity=sparsity,
            evidence=evidence,
            layout=layout,
            reduce=plan.reduce,
            min_density=plan.min_density,
            previous=previous,
        )
    return share_from_first_rank(masks, unwrap(model), model)


def _share(masks: Mapping[str, Tensor]) -> float:
    counts = [(int(mask.sum()), mask.numel()) for mask in masks.values()]
    return sum(kept for kept, _ in counts) / sum(size for _, size in counts)


def _so_far(before: Masks, unit: Unit, layout: Mapping[str, KeyLayout]) -> BitMasks:
    """The masks of these targets before this decision; targets without masks are all kept."""
    new = {name: key for name, key in layout.items() if name not in before.unit_masks}
    return before.unit_masks.replaced(all_kept(unit, new)).chosen(layout)
