"""Groups that were seen to work: each loses a unit once before it is shown to anybody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from secateur.model.graph.cutting import Keep, removal_of
from secateur.model.graph.group import Group, Groups
from secateur.model.graph.probe import Probes
from secateur.model.graph.repair import hypotheses
from secateur.model.graph.twins import own_memory
from secateur.model.removal import Removal
from secateur.types import Member

__all__ = ["verified", "work_out"]

_MOST_MERGES = 40
"""Modules within which groups are tried together."""


def work_out(probes: Probes, groups: Mapping[str, Group], keep: Keep) -> tuple[nn.Module | None, Removal, str]:
    """Find a removal that passes the probes.

    Args:
        probes: on the model.
        groups: by name.
        keep: the units that stay.

    Returns:
        ``(smaller model, removal, "")``, or ``(None, the plain removal, what went wrong with it)``.
    """
    small, removal, problem = _tried(probes, groups, keep)
    if small is not None:
        small = probes.made(removal)  # the one that was probed may have kept something of its runs
        own_memory(small, probes.root)
    return small, removal, problem


def _tried(probes: Probes, groups: Mapping[str, Group], keep: Keep) -> tuple[nn.Module | None, Removal, str]:
    """The same, with what the smaller model did not lose still in the memory of the model."""
    plain = removal_of(probes.root, groups, keep)
    expected, problem = probes.expect(groups, keep)
    if problem:
        return None, plain, f"units that nothing should read are read: {problem}"
    first = ""
    exact = all(groups[name].exact for name, mask in keep.items() if not bool(mask.all()))
    for removal in hypotheses(probes.root, plain, groups, keep):
        small, problem = probes.check(removal, expected, exact=exact)
        if small is not None:
            return small, removal, ""
        first = first or problem
    return None, plain, first


def verified(probes: Probes, groups: Groups) -> Groups:
    """Leave out the groups that do not survive the loss of one unit, with what went wrong as the reason."""
    bad: dict[str, str] = {}
    for names in _selections(groups):
        _search(probes, groups, [name for name in names if name not in bad], bad)
    # One group may hide another's trouble: what is left has to work together.
    left = [name for name in groups if name not in bad]
    problem = _problem(probes, groups, left) if bad else ""
    if problem:
        bad |= dict.fromkeys(left, problem)
    found = {name: group for name, group in groups.items() if name not in bad}
    for merged, names in _merged(probes, groups, list(bad)):
        found[merged.name] = merged
        for name in names:
            del bad[name]
    frozen = {**groups.frozen, **{f"{name} out": why for name, why in bad.items()}}
    return replace(groups, found={name: found[name] for name in groups if name in found}, frozen=frozen)


def _merged(probes: Probes, groups: Groups, bad: list[str]) -> Iterator[tuple[Group, list[str]]]:
    """Groups that cannot go alone, but can go together: one number in a module says the width of both.

    Tried within one module first, then within the modules around it.
    """
    waiting = list(bad)
    prefixes = {prefix for name in bad for prefix in _around(name)}
    for prefix in sorted(prefixes, key=lambda one: (-one.count("."), one == "", one))[:_MOST_MERGES]:
        for units in sorted({groups[name].units for name in waiting}):
            names = [n for n in waiting if groups[n].units == units and (n.startswith(f"{prefix}.") or not prefix)]
            if len(names) < 2:
                continue
            one = _as_one([groups[name] for name in names])
            if not _problem(probes, replace(groups, found={one.name: one}), [one.name]):
                waiting = [name for name in waiting if name not in names]
                yield one, names


def _around(name: str) -> Iterator[str]:
    parts = name.split(".")[:-1]
    for length in range(len(parts), -1, -1):
        yield ".".join(parts[:length])


def _as_one(groups: Sequence[Group]) -> Group:
    """The first units of all as one unit, the second, and so on."""
    first = groups[0]
    owners: dict[tuple[str, int], Member] = {}
    for member in (member for group in groups for member in group.members):
        known = owners.get((member.name, member.dim), member)
        owner = tuple(max(a, b) for a, b in zip(known.owner, member.owner, strict=True))
        owners[member.name, member.dim] = replace(known, owner=owner)
    return replace(
        first,
        members=tuple(owners.values()),
        exact=all(group.exact for group in groups),
        why_inexact=next((group.why_inexact for group in groups if group.why_inexact), ""),
        read_by_weights=all(group.read_by_weights for group in groups),
        rescale=any(group.rescale for group in groups),
    )


def _selections(groups: Groups) -> list[list[str]]:
    """Sets of groups that are tried together; inside attention such that any two are once tried apart.

    A module may know one width for queries and values: groups that only work together are found out so.
    """
    names = list(groups)
    if all(group.kind == "channel" for group in groups.values()):
        return [names]
    bits = max(len(names) - 1, 0).bit_length()
    halves = [
        [name for place, name in enumerate(names) if place >> bit & 1 == side] for bit in range(bits) for side in (0, 1)
    ]
    return halves or [names]


def _search(probes: Probes, groups: Groups, names: Sequence[str], bad: dict[str, str]) -> None:
    """Halve a set of groups that fails together until single ones are found."""
    if not names:
        return
    problem = _problem(probes, groups, names)
    if not problem:
        return
    if len(names) == 1:
        bad[names[0]] = problem
        return
    middle = len(names) // 2
    _search(probes, groups, names[:middle], bad)
    _search(probes, groups, names[middle:], bad)


def _problem(probes: Probes, groups: Groups, names: Sequence[str]) -> str:
    # Not the same number of each: groups that only work with equal losses are found out.
    keep = {name: _all_but(groups[name].units, 1 + place % 2) for place, name in enumerate(names)}
    return _tried(probes, groups, keep)[2] if keep else ""


def _all_but(units: int, number: int) -> torch.Tensor:
    mask = torch.ones(units, dtype=torch.bool)
    middle = units // 2
    mask[middle : middle + min(number, units - 1)] = False
    return mask
