"""The members of a coupled group as JSON, with the unit of each position in runs.

A run ``[first, count, repeat, step]`` stands for ``count`` units ``first, first + step, ...``, each for ``repeat``
positions: ``[0, 64, 1, 1]`` for 64 filters, ``[0, 64, 49, 1]`` for the columns of a linear layer behind a flatten of
7 x 7, ``[-1, 3, 1, 0]`` for three positions of no unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, get_args, get_type_hints

from secateur.io.container import is_count, parse_shape
from secateur.types import Layout, Member

__all__ = ["check_groups", "member_json", "parse_members", "runs_of"]

_MOST_POSITIONS = 1 << 26
"""Of all members of a file together: what it may ask for when its shapes lie. Half a gigabyte of pointers."""

_PARTS = get_args(get_type_hints(Member)["part"])


def member_json(member: Member) -> dict[str, Any]:
    """One member for the record of a file.

    Example:
        >>> member_json(Member("fc.weight", (2, 6), 1, "in", (0, 0, 0, 1, 1, 1)))["owner"]
        [[0, 2, 3, 1]]
    """
    return {
        "name": member.name,
        "shape": list(member.shape),
        "dim": member.dim,
        "part": member.part,
        "owner": runs_of(member.owner),
    }


def parse_members(value: object, units: int, what: str, known: int = 0) -> tuple[Member, ...]:
    """The members of a group of ``units`` units, from a record that nobody vouches for.

    Args:
        value: the list of members.
        units: how many units the group has.
        what: the group, for messages.
        known: positions of the groups before it; all groups of a file together have an upper limit.

    Raises:
        ValueError: for anything but what ``member_json`` writes.

    Example:
        >>> member = Member("fc.weight", (2, 6), 1, "in", (0, 0, 0, 1, 1, 1))
        >>> parse_members([member_json(member)], 2, "group a")[0] == member
        True
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"altered: {what} has no list of members")
    left = _MOST_POSITIONS - known
    found: list[Member] = []
    for entry in value:
        member = _parse_member(entry, units, what, left)
        left -= len(member.owner)
        found.append(member)
    return tuple(found)


def check_groups(layout: Layout, masked: Mapping[str, tuple[int, ...]], units: Mapping[str, tuple[int, ...]]) -> None:
    """Groups, masked tensors and unit masks have to belong together.

    Args:
        layout: group name -> layout.
        masked: masked tensor -> shape.
        units: group name -> shape of its unit mask.

    Raises:
        ValueError: where one has no other, or shapes differ.
    """
    if {name: key.shape for name, key in layout.items()} != dict(units):
        raise ValueError(f"altered: the unit masks of {sorted(units)[:5]} are not those of its coupled groups")
    members = [member for key in layout.values() for member in key.members]
    wrong = [member.name for member in members if masked.get(member.name) != member.shape]
    wrong += sorted(set(masked) - {member.name for member in members})
    if wrong:
        raise ValueError(f"altered: masked tensors and members of groups disagree about {wrong[:5]}")


def runs_of(owner: Sequence[int]) -> list[list[int]]:
    """Runs ``[first, count, repeat, step]`` that give the owner of each position back.

    Example:
        >>> runs_of((0, 1, 2, 3)), runs_of((-1, -1, 0, 0, 2, 2))
        ([[0, 4, 1, 1]], [[-1, 1, 2, 0], [0, 2, 2, 2]])
    """
    runs: list[list[int]] = []
    for unit, same in groupby(owner):
        repeat = sum(1 for _ in same)
        last = runs[-1] if runs else None
        if last is not None and unit >= 0 and last[0] >= 0 and last[2] == repeat:
            if last[1] == 1:
                last[1:] = [2, repeat, unit - last[0]]
                continue
            if unit == last[0] + last[1] * last[3]:
                last[1] += 1
                continue
        runs.append([unit, 1, repeat, 0])
    return runs


def _parse_member(entry: object, units: int, what: str, most: int) -> Member:
    keys = {"name", "shape", "dim", "part", "owner"}
    if not isinstance(entry, dict) or set(entry) != keys:
        raise ValueError(f"altered: a member of {what} does not have exactly the keys {sorted(keys)}")
    name, dim = entry["name"], entry["dim"]
    shape = parse_shape(entry["shape"], f"member {name!r} of {what}")
    if not isinstance(name, str) or entry["part"] not in _PARTS or not is_count(dim) or dim >= len(shape):
        raise ValueError(f"altered: member {name!r} of {what}: part {entry['part']!r}, axis {dim!r} of shape {shape}")
    if shape[dim] > most:
        raise ValueError(f"altered: with the members of {what} the groups have more than {_MOST_POSITIONS} positions")
    owner = _positions(entry["owner"], units, shape[dim])
    if owner is None:
        raise ValueError(f"altered: member {name!r} of {what} does not say the unit of each of {shape[dim]} positions")
    return Member(name, shape, dim, entry["part"], owner)


def _positions(runs: object, units: int, length: int) -> tuple[int, ...] | None:
    if not isinstance(runs, list):
        return None
    owner: list[int] = []
    for run in runs:
        if not isinstance(run, list) or len(run) != 4 or not all(type(number) is int for number in run):
            return None
        first, count, repeat, step = run
        if count < 1 or repeat < 1 or count * repeat > length - len(owner):
            return None
        last = first + (count - 1) * step
        if not all(-1 <= unit < units for unit in (first, last)) or (-1 in (first, last) and step != 0):
            return None
        owner.extend(_repeated((first + place * step for place in range(count)), repeat))
    return tuple(owner) if len(owner) == length else None


def _repeated(values: Iterable[int], times: int) -> Iterable[int]:
    return (value for value in values for _ in range(times))
