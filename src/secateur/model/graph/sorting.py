"""Sorting classes of ids into groups: units that are slices of the same axes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
from torch import Tensor, nn

from secateur.model.graph.group import Group, Groups
from secateur.model.graph.relations import Axis, Ids, Relations
from secateur.model.graph.solve import Freedom, Mask, Solution, solve
from secateur.model.graph.trace import tensor_names
from secateur.types import Member

__all__ = ["group_up"]


def group_up(
    root: nn.Module, relations: Relations, unit: Freedom = "channel", *, exact: bool = True, one_width: bool = False
) -> Groups:
    """The groups that relations leave for one kind of unit.

    Args:
        root: the model that was traced.
        relations: of one or several traces.
        unit: what goes.
        exact: leave out what changes the values of others.
        one_width: queries, keys and values of a head lose the same places.

    Returns:
        Groups in the order in which the model registers their first producers.
    """
    tensors = tensor_names(root)
    picture = _picture(relations, solve(relations, unit, exact=exact, one_width=one_width), unit, exact)
    groups = [_group(axes, classes, picture, tensors) for axes, classes in _families(picture).items()]
    order = {name: place for place, name in enumerate(tensors)}
    found: dict[str, Group] = {}
    for group in sorted(groups, key=lambda one: order[one.name]):
        name = _free_name(group.name, found)
        found[name] = replace(group, name=name)
    return Groups(found, _frozen(picture, found), tuple(relations.unknown))


@dataclass(frozen=True)
class _Picture:
    """All that is asked about a class.

    Attributes:
        axes: of all slots, in order.
        labels: of the places along each axis.
        classes: sorted, each as often as it has axes.
        of: beside ``classes``: numbers of these axes, ascending.
        made: of each class (by id), whether a layer of the trace makes it.
        read: of each class, whether anything reads it.
    """

    relations: Relations
    solution: Solution
    unit: Freedom
    exact: bool
    axes: tuple[Axis, ...]
    labels: Mapping[Axis, Ids]
    classes: Ids
    of: Ids
    made: Mask
    read: Mask

    def uses(self, axis: Axis) -> set[str]:
        """How contractions use an axis."""
        return set(self.relations.uses.get(axis, ()))

    def part(self, axis: Axis) -> Literal["out", "in", "follows", "direction"]:
        """What an axis is to the group that it belongs to."""
        uses = self.uses(axis)
        if "direction" in uses:
            return "direction"
        return "out" if "out" in uses else "in" if "in" in uses else "follows"

    def why_not(self, one: int) -> str | None:
        """Why a class is not removable; None where it is."""
        solution = self.solution
        if solution.frozen[one]:
            return solution.reasons.get(one, "its place must stay")
        if not self.made[one]:
            return "no layer of the trace makes it"
        if not self.read[one]:
            return "nothing that the trace saw reads it"
        if self.unit != "channel" and not solution.attention[one]:
            return f"it has no {self.unit}s"
        if self.exact and one in solution.inexact:
            return f"{solution.inexact[one]} (exact=False allows it)"
        return None

    def removable(self) -> Mask:
        """Of each id, whether ``why_not`` has nothing against it as a class."""
        solution = self.solution
        good = ~solution.frozen & self.made & self.read
        if self.unit != "channel":
            good &= solution.attention
        if self.exact:
            good[list(solution.inexact)] = False
        return good


def _picture(relations: Relations, solution: Solution, unit: Freedom, exact: bool) -> _Picture:
    label, axes = solution.label, tuple(relations.slots)
    labels = {axis: label[first : first + size] for axis, (first, size) in relations.slots.items()}
    number = np.repeat(np.arange(len(axes)), [size for _, size in relations.slots.values()])
    pairs = np.unique(np.concatenate([*labels.values(), np.zeros(0, np.int64)]) * max(len(axes), 1) + number)
    classes, of = np.divmod(pairs, max(len(axes), 1))

    def used(use: str) -> Mask:
        wanted = np.array([use in relations.uses.get(axis, ()) for axis in axes], bool)
        found = np.zeros(relations.count, bool)
        found[classes[wanted[of]] if len(axes) else []] = True
        return found

    read = used("in") | solution.consumed
    return _Picture(relations, solution, unit, exact, axes, labels, classes, of, used("out"), read)


def _families(picture: _Picture) -> dict[tuple[Axis, ...], Ids]:
    """Removable classes by the axes they are slices of; one class alone has to stay."""
    families: dict[bytes, list[int]] = defaultdict(list)
    good = picture.removable()[picture.classes]
    classes, of = picture.classes[good], picture.of[good]
    starts = np.flatnonzero(np.diff(classes, prepend=-1))
    ends = np.append(starts, len(classes))[1:]
    for one, start, end in zip(classes[starts].tolist(), starts.tolist(), ends.tolist(), strict=True):
        families[of[start:end].tobytes()].append(one)
    return {
        tuple(picture.axes[number] for number in np.frombuffer(axes, of.dtype)): np.array(found)
        for axes, found in families.items()
        if len(found) > 1
    }


def _group(axes: tuple[Axis, ...], classes: Ids, picture: _Picture, tensors: Mapping[str, Tensor]) -> Group:
    labels, solution = picture.labels, picture.solution
    first = min(axes, key=lambda axis: ("out", "direction", "in", "follows").index(picture.part(axis)))
    ranks = np.full(picture.relations.count, -1)
    found, places = np.unique(labels[first], return_index=True)
    ordered = classes[np.argsort(places[np.searchsorted(found, classes)])]
    ranks[ordered] = np.arange(len(ordered))
    owners = _Owners()
    members = tuple(
        Member(axis[0], tuple(tensors[axis[0]].shape), axis[1], picture.part(axis), owners.of(ranks[labels[axis]]))
        for axis in (first, *(axis for axis in axes if axis != first))
    )
    why = next((solution.inexact[one] for one in classes.tolist() if one in solution.inexact), "")
    rescale = bool(solution.squares[classes].any())
    tied = any(picture.uses(axis) == {"in", "out"} for axis in axes)
    alone = not (tied or rescale or solution.met[classes].any()) and any(m.part == "in" for m in members)
    return Group(first[0], len(classes), members, picture.unit, not why, why, alone, rescale)


@final
class _Owners:
    """Tuples of owners, of which equal ones are one object: most members of a group have the same."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, ...]] = {}

    def of(self, ranks: Ids) -> tuple[int, ...]:
        key = ranks.tobytes()
        if key not in self._known:
            self._known[key] = tuple(ranks.tolist())
        return self._known[key]


def _free_name(name: str, taken: Mapping[str, Group]) -> str:
    """The name, numbered where several groups share their first producer."""
    number, free = 2, name
    while free in taken:
        free, number = f"{name}#{number}", number + 1
    return free


def _frozen(picture: _Picture, found: Mapping[str, Group]) -> dict[str, str]:
    """Every axis that a layer makes and no group removes from, with the reason."""
    covered = {(member.name, member.dim) for group in found.values() for member in group.members}
    frozen: dict[str, str] = {}
    for axis, labels in picture.labels.items():
        if "out" in picture.uses(axis) and axis not in covered:
            reasons = (picture.why_not(int(one)) for one in np.unique(labels))
            frozen[f"{axis[0]} out"] = next((why for why in reasons if why), "it is one unit, which has to stay")
    return frozen
