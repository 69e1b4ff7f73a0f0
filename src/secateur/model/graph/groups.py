"""Coupled groups: what has to go together when a network gets narrower, and what cannot go, with the reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor, nn

from secateur.model.graph.examples import Example, as_examples, resized
from secateur.model.graph.group import Group, Groups
from secateur.model.graph.probe import Probes
from secateur.model.graph.relations import Axis, Relations
from secateur.model.graph.solve import Freedom, Solution, solve
from secateur.model.graph.trace import tensor_names, trace
from secateur.model.graph.verify import verified
from secateur.model.names import unwrap
from secateur.types import Member

__all__ = ["Group", "Groups", "find_groups", "group_up", "relations_of"]


def find_groups(
    model: nn.Module, example_inputs: Any, *, unit: Freedom = "channel", exact: bool = True, verify: bool = True
) -> Groups:
    """The coupled groups of a model, found by running it once and tried on a copy; the model is not changed.

    Args:
        model: any module; wrappers are looked through.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of these,
            one for each branch of a model that decides by its data.
        unit: what goes: ``"channel"``, and inside attention ``"head"`` or ``"head_dim"``.
        exact: leave out what changes the values of others when it goes (layer norm, single places of a group norm).
        verify: take one unit of each group away from a copy, and leave out groups that do not survive it.

    Returns:
        ``Groups``: the removable ones, and the reason for each layer that cannot be touched.

    Raises:
        ValueError: if the model decides by its data and only one example is given.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> print(find_groups(net, torch.zeros(1, 1, 4, 4)))
        1 groups can be removed from:
          0.weight: 4 channels; made by 0.weight; read by 4.weight, 5 more
        not from:
          4.weight out: it is an output of the model
    """
    root, examples = unwrap(model), as_examples(example_inputs)
    if unit not in get_args(Freedom):
        raise ValueError(f"unit={unit!r}: groups are of unit {', '.join(map(repr, get_args(Freedom)))}")
    groups = group_up(root, relations_of(root, examples), unit, exact=exact)
    return verified(Probes(root, examples), groups) if verify and groups else groups


def relations_of(root: nn.Module, examples: list[Example]) -> Relations:
    """Trace every example at batch size 2, or as it is where the model refuses that size.

    Raises:
        ValueError: if a branch depends on data and there is one example.
    """
    relations = Relations()
    for example in examples:
        trace(root, resized(example, 2), relations)
    if relations.branches and len(examples) == 1:
        raise ValueError(
            f"the model decides by its data at {relations.branches[0]}: a trace sees one branch only. Give "
            "example_inputs= a list with one example for each branch"
        )
    return relations


def group_up(root: nn.Module, relations: Relations, unit: Freedom = "channel", *, exact: bool = True) -> Groups:
    """Sort classes of ids into groups: units that are slices of the same axes."""
    tensors = tensor_names(root)
    solution = solve(relations, unit, exact=exact)
    used: dict[Axis, np.ndarray] = {
        axis: solution.label[first : first + size] for axis, (first, size) in relations.slots.items()
    }
    families = _families(relations, solution, used, unit, exact)
    found: dict[str, Group] = {}
    for axes, classes in families.items():
        group = _group(axes, classes, used, relations, solution, tensors, unit)
        found[_free_name(group.name, found)] = group
    order = {name: place for place, name in enumerate(tensors)}
    ordered = sorted(found.items(), key=lambda item: order[item[1].members[0].name])
    named = {name: group if group.name == name else _renamed(group, name) for name, group in ordered}
    frozen = _frozen(relations, solution, used, named)
    return Groups(named, frozen, tuple(relations.unknown))


def _families(
    relations: Relations, solution: Solution, used: dict[Axis, np.ndarray], unit: Freedom, exact: bool
) -> dict[tuple[Axis, ...], list[int]]:
    """Classes by the axes they are slices of."""
    axes_of: dict[int, list[Axis]] = defaultdict(list)
    for axis, labels in used.items():
        for one in np.unique(labels):
            axes_of[int(one)].append(axis)
    families: dict[tuple[Axis, ...], list[int]] = defaultdict(list)
    for one, axes in axes_of.items():
        if _why_not(one, axes, relations, solution, unit, exact) is None:
            families[tuple(axes)].append(one)
    return {axes: classes for axes, classes in families.items() if len(classes) > 1}


def _why_not(
    one: int, axes: list[Axis], relations: Relations, solution: Solution, unit: Freedom, exact: bool
) -> str | None:
    """Why a class is not removable; None where it is."""
    if solution.frozen[one]:
        return solution.reasons.get(one, "its place must stay")
    uses = [relations.uses.get(axis, set()) for axis in axes]
    if not any("out" in use for use in uses):
        return "no layer of the trace makes it"
    if not any("in" in use for use in uses) and not solution.consumed[one]:
        return "nothing reads it"
    if unit != "channel" and not solution.attention[one]:
        return f"it is no {unit}"
    if exact and one in solution.inexact:
        return f"{solution.inexact[one]} (exact=False allows it)"
    return None


def _group(
    axes: tuple[Axis, ...],
    classes: list[int],
    used: dict[Axis, np.ndarray],
    relations: Relations,
    solution: Solution,
    tensors: Mapping[str, Tensor],
    unit: Freedom,
) -> Group:
    first = next((axis for axis in axes if "out" in relations.uses.get(axis, ())), axes[0])
    place = {one: int(np.flatnonzero(used[first] == one)[0]) for one in classes}
    ranks = np.full(relations.count, -1)
    for rank, one in enumerate(sorted(classes, key=place.__getitem__)):
        ranks[one] = rank
    members = tuple(
        Member(
            name, tuple(tensors[name].shape), dim, _part(relations, (name, dim)), tuple(ranks[used[name, dim]].tolist())
        )
        for name, dim in (first, *(axis for axis in axes if axis != first))
    )
    why = next((solution.inexact[one] for one in classes if one in solution.inexact), "")
    rescale = bool(solution.squares[classes].any())
    tied = any(relations.uses.get(axis, set()) == {"in", "out"} for axis in axes)
    alone = not (tied or rescale or solution.met[classes].any()) and any(m.part == "in" for m in members)
    return Group(first[0], len(classes), members, unit, not why, why, alone, rescale)


def _part(relations: Relations, axis: Axis) -> Literal["out", "in", "follows"]:
    uses = relations.uses.get(axis, set())
    return "out" if "out" in uses else "in" if "in" in uses else "follows"


def _free_name(name: str, taken: Mapping[str, Group]) -> str:
    """The name, numbered where several groups share their first producer."""
    number, free = 2, name
    while free in taken:
        free, number = f"{name}#{number}", number + 1
    return free


def _renamed(group: Group, name: str) -> Group:
    return replace(group, name=name)


def _frozen(
    relations: Relations, solution: Solution, used: dict[Axis, np.ndarray], found: Mapping[str, Group]
) -> dict[str, str]:
    """Every axis that a layer makes and no group removes from, with the reason."""
    covered = {(m.name, m.dim) for group in found.values() for m in group.members}
    frozen: dict[str, str] = {}
    for axis, labels in used.items():
        if "out" in relations.uses.get(axis, ()) and axis not in covered:
            reasons = (solution.reasons.get(int(one)) or solution.inexact.get(int(one)) for one in np.unique(labels))
            why = next((reason for reason in reasons if reason), None)
            frozen[f"{axis[0]} out"] = why or "a single unit is left, which has to stay, or nothing reads it"
    return frozen
