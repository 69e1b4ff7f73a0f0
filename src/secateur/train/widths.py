"""How many units of a group may stay: at least one, and where asked a multiple that the hardware likes."""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias

from secateur.model.graph.group import Group

__all__ = ["Multiples", "RoundTo", "allowed_widths", "multiples_of"]

RoundTo: TypeAlias = "int | Mapping[str, int] | str | None"
"""A multiple for all widths, a table of globs to multiples, ``"measured"``, or nothing."""

Multiples: TypeAlias = dict[str, int]
"""Group -> the multiple that its width is rounded to."""


def multiples_of(round_to: RoundTo, groups: Mapping[str, Group]) -> Multiples:
    """The multiple of each group.

    Args:
        round_to: one multiple, or names and globs of layers -> multiples. A layer names the group whose units it
            makes; the first match counts, and what no entry matches is not rounded.
        groups: by name.

    Returns:
        Group -> multiple, 1 where nothing is rounded.

    Raises:
        ValueError: for a multiple below 1, and for a glob that matches no group.

    Example:
        >>> group = Group("conv.weight", 12, ())
        >>> multiples_of({"conv*": 8}, {"conv.weight": group})
        {'conv.weight': 8}
    """
    if round_to is None or isinstance(round_to, int):
        table = {"*": 1 if round_to is None else round_to}
    elif isinstance(round_to, Mapping):
        table = dict(round_to)
    else:
        raise ValueError(f"round_to={round_to!r}: give a whole number, a table layer -> number, or 'measured'")
    for pattern, multiple in table.items():
        if type(multiple) is not int or multiple < 1:
            raise ValueError(f"round_to: {pattern!r} has the multiple {multiple!r}; whole numbers from 1 are allowed")
    found: Multiples = dict.fromkeys(groups, 1)
    taken: set[str] = set()
    for pattern, multiple in table.items():
        matching = [name for name, group in groups.items() if _matches(pattern, name, group)]
        if not matching:
            raise ValueError(_unmatched(pattern, groups))
        found.update(dict.fromkeys((name for name in matching if name not in taken), multiple))
        taken.update(matching)
    return found


def allowed_widths(group: Group, multiple: int) -> list[int]:
    """Entry k: how many units stay where k would.

    The layer that makes the units gets a width that is a multiple: the next one below. Where there is none below, the
    narrowest above; a group that loses nothing stays whole, and so does one that cannot get such a width.

    Args:
        group: its first producer is the layer whose width is rounded.
        multiple: of what, 1 for any width.

    Returns:
        ``units + 1`` whole numbers, never falling, each at least 1.

    Example:
        >>> from secateur.types import Member
        >>> producer = Member("conv.weight", (20, 3, 3, 3), 0, "out", tuple(range(20)))
        >>> found = allowed_widths(Group("conv.weight", 20, (producer,)), 8)
        >>> [found[kept] for kept in (20, 19, 16, 9, 7, 0)]
        [20, 16, 16, 8, 8, 8]
    """
    owner = group.members[0].owner if group.members else tuple(range(group.units))
    per_unit = max(1, sum(place >= 0 for place in owner) // group.units)
    fixed = sum(place < 0 for place in owner)
    fine = [kept for kept in range(1, group.units) if (fixed + per_unit * kept) % multiple == 0] + [group.units]
    below = [fine[max(bisect_right(fine, kept) - 1, 0)] for kept in range(group.units)]
    return [*below, group.units]


def _matches(pattern: str, name: str, group: Group) -> bool:
    makers = {name, *(member.name for member in group.members if member.part == "out")}
    names = makers | {maker.rpartition(".")[0] for maker in makers}
    return any(fnmatchcase(each, pattern) for each in names)


def _unmatched(pattern: str, groups: Mapping[str, Group]) -> str:
    near = difflib.get_close_matches(pattern, list(groups), n=2, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"round_to={pattern!r} matches no layer that makes the units of a group.{hint} Groups: {list(groups)[:12]}"
