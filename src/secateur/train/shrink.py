"""Physical removal: a smaller plain module that computes what the masked one computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from secateur.core import CriterionLike, batches_needed
from secateur.core.unit_channel import Channel
from secateur.measure.fit import Data
from secateur.model.batches import LossFunction, StepFunction
from secateur.model.evidence import Source
from secateur.model.graph.cutting import Keep
from secateur.model.graph.examples import Example, as_examples
from secateur.model.graph.group import Groups
from secateur.model.graph.groups import find_groups
from secateur.model.graph.learned import learn
from secateur.model.graph.probe import Probes
from secateur.model.graph.verify import work_out
from secateur.model.masks import Masks
from secateur.model.names import unwrap
from secateur.model.removal import Removal
from secateur.model.selectors import Selector
from secateur.train.budget import Budget
from secateur.train.choosing import Wish, choose_units, freedom_of, inputs_of, report_on
from secateur.train.cost import CostModel
from secateur.train.from_zeros import carry_out, shrink_zeros
from secateur.train.given import start_of
from secateur.train.ranking import Spread
from secateur.train.recalibrate import batch_norms
from secateur.train.recalibrate import recalibrate as take_again
from secateur.train.shrinkage import Shrinkage, remember_shrinkage
from secateur.train.widths import RoundTo

__all__ = ["shrink"]


def shrink(
    model: nn.Module,
    masks: Masks | None = None,
    *,
    example_inputs: Any,
    units: Mapping[str, Sequence[int]] | None = None,
    params: float | None = None,
    macs: float | None = None,
    bytes: float | None = None,
    latency_ms: float | None = None,
    sparsity: float | None = None,
    criterion: CriterionLike = "l2",
    allocation: Spread = "global",
    round_to: RoundTo = None,
    targets: Selector | None = None,
    exclude: Selector | None = None,
    data: Any = None,
    loss: LossFunction | None = None,
    step: StepFunction | None = None,
    batches: int | None = None,
    seed: int = 0,
    recalibrate: Any = None,
    valid: Data | None = None,
    unit: str | Channel = "channel",
    exact: bool = True,
    from_zeros: bool = False,
    optimizer: Optimizer | None = None,
    inplace: bool = False,
) -> Any:
    """Make a model smaller for good: take masked or named units out of it, or as many as a budget asks.

    The plan is tried on a copy first: with what reads the units zeroed and what makes them disturbed the output must
    not move, and the smaller model must return the masked model's values and shapes at two batch sizes. If a probe
    fails, nothing of the model or the optimizer has changed.

    Under a budget the units go in the order of their scores, each divided by the mean score of its group, and no more
    of them than it takes. ``params``, ``macs`` and ``bytes`` follow from shapes, exactly; milliseconds are measured on
    the example inputs as they are. What masks or ``units`` removed goes as well. ``sc.shrinkage(small)`` tells what
    came of it.

    Args:
        model: any module; wrappers are looked through, and the result is the user's own module without them.
        masks: of unit ``channel``; None: the masks of this model.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of these.
        units: instead of masks: group name -> numbers of the units to remove, as ``sc.groups`` counts them.
        params: budget of parameters; like all budgets up to 1.0 a fraction of the dense model's, above it absolute.
        macs: budget of multiply-adds of one sample.
        bytes: budget of the file, as plain safetensors.
        latency_ms: budget of milliseconds per call on one thread.
        sparsity: share of all units to remove.
        criterion: what scores the units under a budget.
        allocation: ``"global"``, or ``"uniform"``: the same share of each group.
        round_to: widths are multiples of this, or by layer, ``{"layer3*": 8}``: the next below, the multiple itself
            where there is none; ``"measured"``: of 1, 8, 16, 32 what runs fastest here at no more multiply-adds.
        targets: the groups that a budget may cut, by the layers that make their units; None: all.
        exclude: layers of which a budget takes nothing.
        data: batches, for criteria that read gradients.
        loss: ``loss(output, labels)``.
        step: ``step(model, batch) -> loss``.
        batches: how many to read; None: as the criterion says.
        seed: of random criteria.
        recalibrate: batches on which the batch norms of the smaller model take their statistics again.
        valid: labelled batches; accuracy on them before and after that is recorded.
        unit: the kind of unit that goes: ``"channel"``, ``"head"`` or ``"head_dim"``. Under a budget its score is the
            mean over the layers that make it; ``"channel(all)"`` adds those that read it, ``"channel(out, weights)"``
            takes all of their weights at once (heads likewise).
        exact: refuse what changes the values of what stays.
        from_zeros: instead of masks, units and budgets: take out every unit whose zeros, wherever they come from, keep
            it from changing the output, constants folded into the next bias where that is exact. Zero-initialised
            residual scales and LoRA factors count too.
        optimizer: its state is sliced along.
        inplace: shrink ``model`` (and ``optimizer``) itself; False: a copy, the original stays as it is.

    Returns:
        The smaller module; with ``optimizer`` the pair of both.

    Raises:
        ValueError: if there is nothing to go by, the masks are not of unit ``channel``, were trained without, or belong
            to other groups; if units are unknown; if a budget cannot be met (with the least that can be reached, and
            the layers that hold it); if no plan passes the probes.

    Example:
        >>> import secateur as sc
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
        >>> _ = sc.prune(net, 0.5, unit="channel", example_inputs=x)
        >>> small = shrink(net, example_inputs=x)
        >>> small[0].out_features, torch.allclose(small(x), net(x), atol=1e-6)
        (4, True)
        >>> shrink(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), example_inputs=x, macs=0.5)[0].out_features
        4
    """
    read = batches_needed(criterion) if batches is None else batches
    source = Source(data, loss, step, read, seed=seed, example=example_inputs)
    budget = Budget(params, macs, bytes, latency_ms, sparsity)
    root, examples, (freedom, scored) = unwrap(model), as_examples(example_inputs), freedom_of(unit)
    wish = Wish(budget, criterion, source, targets, exclude, round_to, allocation, scored)
    _refuse(root, wish, recalibrate, valid)
    if from_zeros:
        _refuse_choices(masks, units, budget, recalibrate)
        return _as_asked(model, shrink_zeros(root, examples, freedom, optimizer, inplace), inplace)

    def plan(*, verify: bool) -> tuple[nn.Module, Removal, Shrinkage]:
        groups = find_groups(root, example_inputs, unit=freedom, exact=exact, verify=verify)
        return _planned(root, examples, groups, start_of(root, groups, masks, units, budget), wish)

    small, removal, record = _tried(root, examples, plan, chosen=not budget.given and freedom == "channel")
    if recalibrate is not None:
        record = replace(record, recalibration=take_again(small, recalibrate, valid=valid))
    target, also = carry_out(root, optimizer, inplace, small, removal)
    _copy_buffers(small, target)
    remember_shrinkage(target, record)
    return _as_asked(model, (target, also), inplace)


def _as_asked(model: nn.Module, made: tuple[nn.Module, Optimizer | None], inplace: bool) -> Any:
    found, optimizer = model if inplace else made[0], made[1]
    return found if optimizer is None else (found, optimizer)


def _refuse_choices(masks: Masks | None, units: Mapping[str, Sequence[int]] | None, budget: Budget, again: Any) -> None:
    if masks is not None or units is not None or budget.given or again is not None:
        raise ValueError(
            "from_zeros=True takes out what is zero already, whatever made it: leave out masks=, units=, recalibrate= "
            "and budgets"
        )


def _tried(
    root: nn.Module, examples: list[Example], plan: Callable[..., tuple[nn.Module, Removal, Shrinkage]], *, chosen: bool
) -> Any:
    """Plan; where the units are chosen already, their own probes say whether the groups were right.

    If they were not, the verified groups know more: what goes together, and why something cannot go. If the probes
    do not pass even so, smaller images than the user's may have misled, and it is planned again on the user's own.
    """
    told: list[ValueError] = []
    verifying = (False, True) if chosen else (True,)
    for whole in (False, True):
        if whole and not _misled(root, examples, told):
            break
        for verify in verifying:
            try:
                return plan(verify=verify)
            except ValueError as error:
                told.append(error)
    failed = told[len(verifying) - 1]
    if not isinstance(failed, _UnprovenError):
        raise failed
    raise ValueError(str(failed)) from None


def _misled(root: nn.Module, examples: list[Example], told: Sequence[ValueError]) -> bool:
    """Whether smaller images can be why probes failed; if so, it is known now what the user's own say."""
    if not any(isinstance(error, _UnprovenError) for error in told) or learn(root, examples, sure=True).size is None:
        return False
    learn(root, examples, whole=True)
    return True


class _UnprovenError(ValueError):
    """A plan that does not pass its probes."""


def _planned(
    root: nn.Module, examples: list[Example], groups: Groups, start: Keep, wish: Wish
) -> tuple[nn.Module, Removal, Shrinkage]:
    """The smaller model as it passed its probes, how it is made, and what it takes."""
    learned, inputs = learn(root, examples, sure=True), inputs_of(examples[0])
    learned.refuse_unprovable()
    probes = Probes(root, examples, smaller=learned.smaller(examples), shared=learned.shares)
    counted = inputs if wish.budget.given else None  # counting runs the model once more
    costs = CostModel(root, groups, counted)
    last: list[tuple[nn.Module, Removal]] = []

    def build(keep: Keep) -> nn.Module:
        small, removal, problem = work_out(probes, groups, keep)
        if small is None:
            hint = "; allocation='uniform' takes equal shares of all layers" if wish.budget.given else ""
            raise _UnprovenError(f"nothing was changed: the smaller model does not pass its probes: {problem}{hint}")
        last[:] = [(small, removal)]
        return small

    choice = choose_units(root, groups, start, wish, costs, build, inputs)
    build(choice.keep)
    small, removal = last[0]
    return small, removal, report_on(small, groups, choice, wish, costs, inputs)


def _refuse(root: nn.Module, wish: Wish, recalibrate: Any, valid: Data | None) -> None:
    """What can be seen to be wrong before any work is done."""
    given = {"targets": wish.targets, "exclude": wish.exclude, "round_to": wish.round_to, "data": wish.source.data}
    idle = [f"{name}=" for name, value in given.items() if value is not None]
    idle += [f"the words in unit='{wish.unit.spec}'"] if wish.unit != Channel() else []
    if idle and not wish.budget.given:
        raise ValueError(
            f"{', '.join(idle)} choose units for a budget, and none is given: add params=, macs=, bytes=, latency_ms= "
            "or sparsity="
        )
    if valid is not None and recalibrate is None:
        raise ValueError("valid= is read before and after recalibration: give recalibrate= too, or use sc.evaluate")
    if recalibrate is not None and not batch_norms(root):
        raise ValueError("recalibrate=: this model has no batch norm with running statistics")


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Statistics that were taken again on the model of the probes; elsewhere both are equal."""
    if source is target:
        return
    with torch.no_grad():
        for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)
