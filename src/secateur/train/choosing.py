"""Between scores and a removal: the units that a budget leaves, and the record of what came of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from secateur.core import CriterionLike, evidence_needed, parse_unit, resolve_criterion, settings_needed
from secateur.core import score as score_units
from secateur.core.unit_channel import Channel
from secateur.measure.count import count
from secateur.model.evidence import Source, collect
from secateur.model.graph.cutting import Keep
from secateur.model.graph.examples import Example
from secateur.model.graph.group import Groups
from secateur.model.graph.solve import Freedom
from secateur.model.graph.trace import tensor_names
from secateur.model.group_targets import select_groups
from secateur.model.selectors import Selector
from secateur.train.budget import Budget, Choice, Search
from secateur.train.cost import CostModel
from secateur.train.ranking import Spread
from secateur.train.shrinkage import Figures, Shrinkage, Width
from secateur.train.widths import RoundTo

__all__ = ["Wish", "choose_units", "freedom_of", "inputs_of", "report_on"]

_OUTPUT = "it is an output of the model"
_LISTED = 6


@dataclass(frozen=True)
class Wish:
    """What a user asks for beside masks: a budget, and how the units that go are chosen.

    Attributes:
        budget: what the smaller model may take.
        criterion: scores units; low ones go first.
        source: of its evidence.
        targets: which groups may lose something, by the layers that make their units; None: all.
        exclude: layers that stay as they are.
        round_to: multiples of widths.
        allocation: how scores of different groups compare.
        unit: whose scores make a unit's, and how they come together.
    """

    budget: Budget
    criterion: CriterionLike
    source: Source
    targets: Selector | None = None
    exclude: Selector | None = None
    round_to: RoundTo = None
    allocation: Spread = "global"
    unit: Channel = field(default_factory=Channel)


def freedom_of(unit: str | Channel) -> tuple[Freedom, Channel]:
    """The kind of unit that goes, and how its score is made.

    Args:
        unit: ``"channel"``, ``"head"`` or ``"head_dim"``, each with the words that `Channel` takes.

    Returns:
        Both.

    Raises:
        ValueError: for other units.

    Example:
        >>> freedom_of("head(out, weights)")
        ('head', Channel(scored='out', over='weights'))
    """
    if isinstance(unit, Channel):
        return "channel", unit
    what = (
        f"unit={unit!r}: give 'channel', 'head' or 'head_dim'; with (all) or (out, weights) behind it, how it is scored"
    )
    if not isinstance(unit, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(what)
    name, bracket, words = unit.partition("(")
    if name.strip() not in get_args(Freedom):
        raise ValueError(what)
    try:
        scored, _ = parse_unit(f"channel{bracket}{words}")
    except ValueError as error:
        raise ValueError(what) from error
    return cast("Freedom", name.strip()), cast("Channel", scored)


def choose_units(
    root: nn.Module,
    groups: Groups,
    start: Keep,
    wish: Wish,
    costs: CostModel,
    build: Callable[[Keep], nn.Module],
    inputs: Any,
) -> Choice:
    """The units that stay under a budget.

    Args:
        root: the dense model; not changed.
        groups: its groups.
        start: what is gone already.
        wish: what is asked.
        costs: of a removal.
        build: makes the smaller model.
        inputs: for the clock.

    Returns:
        The choice; without a budget it is the start.

    Raises:
        ValueError: for selectors that match nothing, missing data, and budgets that cannot be met.
    """
    if not wish.budget.given:
        return Choice(dict(start))
    scores = _scores(root, groups, wish)
    search = Search(root, groups, scores, start, costs, build, inputs)
    return search.run(wish.budget, wish.round_to, wish.allocation)


def _scores(root: nn.Module, groups: Groups, wish: Wish) -> dict[str, Tensor]:
    unit = wish.unit
    layout = select_groups(root, groups.layout(), groups.frozen, wish.targets, wish.exclude)
    entry = resolve_criterion(wish.criterion)
    known = wish.budget.sparsity
    source = wish.source if known is None else replace(wish.source, density=1.0 - known)
    evidence = collect(root, evidence_needed(entry), layout, unit, source, settings_needed(entry))
    return score_units(entry, evidence, layout, unit, None)


def inputs_of(example: Example) -> Any:
    """An example as the measuring functions take it."""
    return dict(example.kwargs) if example.kwargs else example.args


def report_on(small: nn.Module, groups: Groups, choice: Choice, wish: Wish, costs: CostModel, inputs: Any) -> Shrinkage:
    """Count the smaller model, and hold it against what was asked.

    Args:
        small: the smaller model.
        groups: of the dense one.
        choice: what was removed.
        wish: what was asked.
        costs: of the dense model.
        inputs: to count multiply-adds with, where they were counted.

    Returns:
        The record.

    Raises:
        ValueError: if the model that came out takes more than the budget: the count before was wrong.
    """
    dense, expected = costs({}), costs(choice.keep)
    empty = {name: torch.ones(group.units, dtype=torch.bool) for name, group in groups.items()} | choice.keep
    own = CostModel(small, {}, None)({})
    macs = None if expected.macs is None else count(small, inputs, masks={}).macs
    dense_ms, small_ms = choice.latency or (None, None)
    after = Figures(own.params, macs, own.bytes, small_ms)
    for name in ("params", "macs", "bytes"):
        figure, limit = getattr(after, name), choice.limits.get(name)
        if limit is not None and figure > limit:
            raise ValueError(
                f"nothing was changed: the smaller model has {figure:,} {name}, more than the {limit:,.0f} asked for, "
                f"and {getattr(expected, name):,} were expected from the shapes: its forward does something else with "
                "fewer channels; ask for less, and give a budget of parameters"
            )
    return Shrinkage(
        requested=wish.budget.given,
        limits=choice.limits,
        before=Figures(dense.params, dense.macs, dense.bytes, dense_ms),
        after=after,
        groups=tuple(Width(name, group.kind, group.units, int(empty[name].sum())) for name, group in groups.items()),
        frozen=dict(groups.frozen),
        notes=(*choice.notes, *_notes(small, groups, costs)),
    )


def _notes(small: nn.Module, groups: Groups, costs: CostModel) -> list[str]:
    notes: list[str] = []
    stuck = _stuck(groups, {name: tuple(tensor.shape) for name, tensor in tensor_names(small).items()})
    if stuck:
        more = f" and {len(stuck) - _LISTED} more" if len(stuck) > _LISTED else ""
        notes.append(f"of fixed width, so that the removal came from the others: {'; '.join(stuck[:_LISTED])}{more}")
    if costs.uncounted:
        notes.append(f"multiply-adds of {', '.join(map(repr, costs.uncounted[:_LISTED]))} are not counted")
    return notes


def _stuck(groups: Groups, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Layers some of whose outputs belong to no group, and those that cannot lose any."""
    free: dict[tuple[str, int], int] = defaultdict(int)
    size: dict[tuple[str, int], int] = {}
    for group in groups.values():
        for member in group.members:
            if member.part == "out":
                free[member.name, member.dim] += sum(place >= 0 for place in member.owner)
                size[member.name, member.dim] = len(member.owner)
    found = [
        f"{axis[0]} ({size[axis] - count} of {size[axis]} outputs)"
        for axis, count in free.items()
        if count < size[axis]
    ]
    for axis, why in groups.frozen.items():
        if why != _OUTPUT and axis.rpartition(" ")[0] in shapes:
            found.append(f"{axis.rpartition(' ')[0]} ({why})")
    return found
