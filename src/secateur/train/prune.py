"""One shot: look before you cut, and cut."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from secateur.core import (
    CriterionLike,
    batches_needed,
    evidence_needed,
    parse_unit,
    resolve_criterion,
    settings_needed,
)
from secateur.core import score as score_units
from secateur.model.batches import LossFunction, StepFunction
from secateur.model.edited import checked, edit
from secateur.model.evidence import Source, collect
from secateur.model.group_targets import find_layout
from secateur.model.masks import Masks, find_masks, register_masks
from secateur.model.merging import check_merge
from secateur.model.names import unwrap
from secateur.model.removal.registry import carry_mark
from secateur.model.selectors import Selector
from secateur.train.deciding import choose_masks, choose_with_merge, choose_with_update, to_trace
from secateur.train.plan import Plan
from secateur.types import KeyLayout, Reduce, Unit

__all__ = ["cut", "prune", "score"]


def score(
    model: nn.Module,
    criterion: CriterionLike = "magnitude",
    *,
    unit: str | Unit = "weight",
    targets: Selector | None = None,
    exclude: Selector | None = None,
    example_inputs: Any = None,
    exact: bool = True,
    data: Any = None,
    loss: LossFunction | None = None,
    step: StepFunction | None = None,
    batches: int | None = None,
    init: Mapping[str, Tensor] | None = None,
    mode: Literal["eval", "train"] = "eval",
    reduce: Reduce | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The scores of all units; nothing is changed. Low scores would go first.

    Args:
        model: any module; wrappers are looked through. A ``DistributedDataParallel`` is scored by the batches that all
            ranks read.
        criterion: a name (``secateur methods`` lists them), a function, or ``sc.combine(...)``.
        unit: what is removed together.
        targets: what to score; None: convolutions, linear layers, attention projections; for unit ``channel`` all
            groups, else those whose producers are named.
        exclude: what of that to leave out.
        example_inputs: for unit ``channel``, which traces the model, and ``synflow``, which takes their shape: a
            tensor, a tuple of arguments, or a mapping of keyword arguments.
        exact: for unit ``channel``: leave alone what cannot be removed without changing the output.
        data: an iterable of batches, or one; for criteria that read gradients.
        loss: ``loss(output, labels)``.
        step: ``step(model, batch) -> loss`` for batches of another shape.
        batches: how many to read, on each rank; None: as the criterion's table says (SNIP 1, Taylor 10).
        init: state dict before training, for criteria that compare with it.
        mode: train or eval mode of the passes over data.
        reduce: how weight scores pool to unit scores; None: as the criterion says.
        seed: of the noise that random criteria read.

    Returns:
        Parameter name (unit ``channel``: group name) -> scores, in the unit's grid (the parameter's shape for unit
        weight).

    Raises:
        ValueError: for unknown names, missing data, or scores that are not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> {name: tuple(scores.shape) for name, scores in score(net, "l1", unit="filter").items()}
        {'0.weight': (4,)}
    """
    parsed, _ = parse_unit(unit)
    entry = resolve_criterion(criterion)
    layout = find_layout(model, targets, exclude, parsed, to_trace(entry, parsed, example_inputs), exact)
    source = Source(
        data,
        loss,
        step,
        batches_needed(entry) if batches is None else batches,
        init,
        seed,
        mode,
        example=example_inputs,
    )
    evidence = collect(model, evidence_needed(entry), layout, parsed, source, settings_needed(entry))
    scores = score_units(entry, evidence, layout, parsed, reduce)
    weights = {tensor.data_ptr() for kind in ("weight", "init") for tensor in evidence.get(kind, {}).values()}
    # A criterion may return its input; the caller's scores must not be the model's memory.
    return {name: value.clone() if value.data_ptr() in weights else value for name, value in scores.items()}


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    criterion: CriterionLike = "magnitude",
    unit: str | Unit = "weight",
    allocation: Any = "global",
    within: Any = "tensor",
    targets: Selector | None = None,
    exclude: Selector | None = None,
    example_inputs: Any = None,
    exact: bool = True,
    data: Any = None,
    loss: LossFunction | None = None,
    step: StepFunction | None = None,
    batches: int | None = None,
    init: Mapping[str, Tensor] | None = None,
    mode: Literal["eval", "train"] = "eval",
    reduce: Reduce | None = None,
    min_density: float | None = 0.0,
    seed: int = 0,
    merge: bool = False,
    rounds: int | None = None,
    update: bool = False,
    inplace: bool = True,
    undo: bool = True,
) -> Any:
    """Prune once: score, allocate, select, and set the removed weights to zero.

    Of N units at sparsity S exactly ``floor(S * N + 0.5)`` go (``uniform`` rounds so for each parameter,
    ``within="row"`` for each row); of equal scores the first in order goes first.
    What earlier masks of this model removed stays removed and counts.

    Args:
        model: any module; wrappers are looked through. A ``DistributedDataParallel`` is pruned by the batches that all
            ranks read.
        sparsity: share of units to remove; left out for n:m patterns.
        criterion: what scores the units.
        unit: what is removed together.
        allocation: how many units each parameter, or group, keeps.
        within: ``"tensor"``, ``"row"``, or ``NM(keep=2, of=4)``, which loses less behind ``sc.permute_channels``.
        targets: what to prune; for unit ``channel`` the groups whose producers are named. None: the default targets,
            or all groups.
        exclude: what of that stays dense.
        example_inputs: for unit ``channel``, which traces the model, and ``synflow``, which takes their shape: a
            tensor, a tuple of arguments, or a mapping of keyword arguments.
        exact: for unit ``channel``: leave alone what cannot be removed without changing the output.
        data: an iterable of batches, or one; for criteria that read gradients.
        loss: ``loss(output, labels)``.
        step: ``step(model, batch) -> loss`` for batches of another shape.
        batches: how many to read, on each rank; None: as the criterion's table says.
        init: state dict before training, for criteria that compare with it.
        mode: train or eval mode of the passes over data.
        reduce: how weight scores pool to unit scores; None: as the criterion says.
        min_density: at least ``max(1, ceil(min_density * n))`` units of each parameter stay (of biases none has to at
            0.0); None: no such floor.
        seed: of the noise that random criteria read.
        merge: kept units take the outgoing weights of removed ones over, for unit ``channel`` and criteria that say
            how. ``activation_correlation``: by least squares of what is read, on ``data`` in eval mode, as
            ``model.merge_activations`` does. ``cosine`` and ``srinivas_babu``: by rows, exact where a removed unit,
            bias included, is a positive multiple of a kept one (``srinivas_babu``: is equal to it), else an
            approximation; refused where it could not be exact even then, as behind a GELU. There a unit is what the
            batch norm directly behind its layer makes of it in eval mode, for the scores too, and eval mode is what
            "exact" is said of: in train mode a norm goes by its batch. A batch norm or a factor per channel elsewhere
            has to treat both units alike.
        rounds: decide in so many rounds, with new evidence in each and the same share of what is left going each time;
            None: as the criterion's table says (SynFlow 100, FORCE 10, most 1).
        update: move the kept weights along, for criteria that say how (``obs``, ``woodfisher``); ``masks.undo()`` puts
            them back, unless they were trained since.
        inplace: change ``model``; False: a pruned copy is returned with its masks.
        undo: keep the removed values so that ``masks.undo()`` can restore them.

    Returns:
        ``Masks``; with ``inplace=False`` the pair ``(pruned copy, Masks)``.

    Raises:
        ValueError: for bad choices, missing data, scores that are not finite; the model is then unchanged.

    Example:
        >>> net = nn.Linear(10, 10)
        >>> masks = prune(net, sparsity=0.9)
        >>> int((net.weight == 0).sum())
        90
    """
    plan = Plan(
        sparsity,
        criterion=criterion,
        unit=unit,
        allocation=allocation,
        within=within,
        targets=targets,
        exclude=exclude,
        reduce=reduce,
        min_density=min_density,
        seed=seed,
        rounds=rounds,
    )
    batches = batches_needed(plan.criterion) if batches is None else batches
    source = Source(data, loss, step, batches, init, seed, mode, example=example_inputs)
    how: dict[str, Any] = {"merge": merge, "update": update, "inplace": inplace, "undo": undo}
    return _prune_once(model, plan, source, example_inputs, exact, **how)


def _prune_once(
    model: nn.Module,
    plan: Plan,
    source: Source,
    example_inputs: Any,
    exact: bool,
    *,
    merge: bool,
    update: bool,
    inplace: bool,
    undo: bool,
) -> Any:
    unit = plan.parsed_unit
    if merge:
        check_merge(plan.criterion, unit)
    traced = to_trace(plan.criterion, unit, example_inputs)
    layout = find_layout(model, plan.targets, plan.exclude, unit, traced, exact)
    before = find_masks(model)
    if before is not None and before.unit != unit:
        raise ValueError(
            f"this model already has masks of unit {before.unit.spec!r}; call undo() on them before pruning "
            f"by unit {unit.spec!r}, or prune by the same unit again"
        )
    values: dict[str, Tensor] = {}
    if merge:
        unit_masks, values = choose_with_merge(model, plan, plan.final, source, layout, before)
    elif update:
        unit_masks, values = choose_with_update(model, plan, plan.final, source, layout, before)
    else:
        unit_masks = choose_masks(model, plan, plan.final, source, layout, before)
    if not inplace:
        pruned = copy.deepcopy(model)
        carry_mark(model, pruned)
        if before is not None:
            carried = Masks(pruned, before.unit_masks, unit, before.layout)
            carried.load_state_dict(before.state_dict())
            register_masks(pruned, carried)
        return pruned, cut(pruned, unit_masks, unit, layout, undo, values)
    return cut(model, unit_masks, unit, layout, undo, values)


def cut(
    model: nn.Module,
    unit_masks: Mapping[str, Tensor],
    unit: Unit,
    layout: Mapping[str, KeyLayout],
    undo: bool,
    values: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Bring the model's masks to ``unit_masks``, and parameters to new values that come with them.

    Args:
        model: as the user gave it.
        unit_masks: key -> bool mask in the unit's grid.
        unit: what is removed together.
        layout: the targets.
        undo: keep the removed values and those that ``values`` replaces.
        values: parameter name -> values, of a merge for example.

    Returns:
        The model's masks, new ones or those it had.

    Raises:
        ValueError: for values that do not fit; nothing is changed then.
    """
    masks, new = find_masks(model), checked(unwrap(model), values or {})
    if masks is None:
        masks = Masks(model, unit_masks, unit, layout, undo=undo)
        register_masks(model, masks)
        masks.apply()
    else:
        masks.add(layout)
        masks.update(unit_masks)
    if new:
        edit(masks, new)
    if not undo:
        masks.commit()
    return masks
