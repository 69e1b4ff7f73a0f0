"""From relations to classes: which ids go together once the unit of removal is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.model.graph.planes import FIRST_ID
from secateur.model.graph.relations import Ids, Relations, Table

__all__ = ["Freedom", "Mask", "Solution", "solve"]

Mask: TypeAlias = NDArray[np.bool_]
Freedom: TypeAlias = Literal["channel", "head", "head_dim"]
"""What attention may lose: nothing of its own (channel), whole heads, or the same place of every head."""


@dataclass(frozen=True)
class Solution:
    """Classes of ids.

    Attributes:
        label: of each id, its class (the smallest id in it).
        frozen: of each id, whether its class must stay.
        attention: of each id, whether its class belongs to the inside of attention.
        reasons: class -> why it must stay.
        inexact: class -> why removing it changes other values.
        squares: of each id, whether a mean runs over its class.
        consumed: of each id, whether something reads its class.
        met: of each id, whether something without weights reads its class.
    """

    label: Ids
    frozen: Mask
    attention: Mask
    squares: Mask
    consumed: Mask
    met: Mask
    reasons: dict[int, str]
    inexact: dict[int, str]


def components(label: Ids, pairs: Ids) -> Ids:
    """Merge the classes of each pair; a class is named by its smallest member."""
    if not pairs.size:
        return label
    while True:
        a, b = label[pairs[0]], label[pairs[1]]
        open_ = a != b
        if not open_.any():
            return label
        low, high = np.minimum(a, b)[open_], np.maximum(a, b)[open_]
        parent = label.copy()
        np.minimum.at(parent, high, low)
        while True:
            shorter = parent[parent]
            if (shorter == parent).all():
                break
            parent = shorter
        label = parent[label]


def solve(
    relations: Relations, freedom: Freedom = "channel", *, exact: bool = True, one_width: bool = False
) -> Solution:
    """Resolve what was collected for one kind of unit.

    Args:
        relations: of one or several traces.
        freedom: what attention may lose.
        exact: group norms lose whole groups, so that the rest keeps its values; False: the same places of each.
        one_width: queries, keys and values of a head lose the same places; for modules that know one width for all.

    Returns:
        The classes.
    """
    label = np.arange(relations.count)
    if relations.pairs:
        label = components(label, np.concatenate(relations.pairs, axis=1))
    for rows in relations.statistics:
        label = _group_norms(label, rows, exact)
    if one_width:
        label = components(label, _same_places(relations, label))
    head_of, inside = _heads(relations, label)
    stuck = list[tuple[Ids, str]]()
    waiting = list(relations.tables.values())
    while True:
        label = _link(label, relations)
        label, waiting, moved = _tables(label, waiting, relations, head_of, inside, freedom, stuck)
        if not moved:
            break
    label = _link(label, relations)
    return _finish(relations, label, inside, stuck, exact)


def _group_norms(label: Ids, rows: Ids, exact: bool) -> Ids:
    if rows.shape[0] == 1 or rows.shape[1] == 1:
        return label
    first = np.broadcast_to(rows[:, :1] if exact else rows[:1], rows.shape)
    pairs = np.stack([first.reshape(-1), rows.reshape(-1)])
    return components(label, pairs[:, (pairs >= FIRST_ID).all(0)])


def _heads(relations: Relations, label: Ids) -> tuple[Ids, Mask]:
    """Of each id, its head (-1: none), and whether it lies inside attention."""
    head = np.full(relations.count, -1)
    inside = np.zeros(relations.count, bool)
    for link in relations.heads:
        head[link.many] = link.one
        inside[link.many] = True
        inside[link.one] = True
    is_head = np.zeros(relations.count, bool)
    for link in relations.heads:
        is_head[label[link.one]] = True
    for link in relations.links:  # values: rows that are multiplied by a head's weights
        row = is_head[label[link.one]] & (link.many >= FIRST_ID)
        fresh = head[link.many[row]] < 0
        head[link.many[row]] = np.where(fresh, link.one[row], head[link.many[row]])
        inside[link.many[row]] = True
    classes = np.zeros(relations.count, bool)
    classes[label[inside]] = True
    of_class = np.full(relations.count, -1)
    known = head >= 0
    of_class[label[known]] = head[known]
    return of_class[label], classes[label]


def _same_places(relations: Relations, label: Ids) -> Ids:
    """Pairs of the places of a head's queries with those of its values."""
    rows: dict[int, tuple[set[int], set[int]]] = {}
    for side, links in enumerate((relations.heads, relations.links)):
        for link in links:
            for one, many in zip(label[link.one].tolist(), link.many.tolist(), strict=True):
                if side == 0 or one in rows:
                    rows.setdefault(one, (set(), set()))[side].add(many)
    pairs = [np.zeros((2, 0), np.int64)]
    for asked, values in rows.values():
        theirs = values - asked
        if len(asked) == len(theirs):
            pairs.append(np.array([sorted(asked), sorted(theirs)]))
    return np.concatenate(pairs, axis=1)


def _link(label: Ids, relations: Relations) -> Ids:
    """Where all of ``many`` are one class, ``one`` belongs to it."""
    for _ in range(64):
        pairs = list[Ids]()
        for link in relations.links:
            low = np.full(relations.count, np.iinfo(np.int64).max)
            high = np.full(relations.count, -1)
            np.minimum.at(low, link.one, label[link.many])
            np.maximum.at(high, link.one, label[link.many])
            whole = (low[link.one] == high[link.one]) & (link.many >= FIRST_ID)
            pairs.append(np.stack([link.one[whole], link.many[whole]]))
        merged = components(label, np.concatenate(pairs, axis=1)) if pairs else label
        if (merged == label).all():
            return label
        label = merged
    return label


def _tables(
    label: Ids,
    tables: list[Table],
    relations: Relations,
    head_of: Ids,
    inside: Mask,
    freedom: Freedom,
    stuck: list[tuple[Ids, str]],
) -> tuple[Ids, list[Table], bool]:
    """Give every table one axis along which slices may go; forced choices first, then one open choice at a time."""
    left, moved, choice = list[tuple[Table, list[int]]](), False, None
    for table in tables:
        classes = label[table.ids]
        axes = [axis for axis in range(classes.ndim) if (classes != classes.take([0], axis)).any()]
        if len(axes) < 2 and not (axes and axes[0] in table.pinned):
            continue  # whole slices along one axis already
        free = [axis for axis in axes if axis not in table.pinned]
        if inside[table.ids].any():
            free = _attention_axes(head_of[table.ids], free, freedom)
        if len(free) > 1:
            left.append((table, free))
            continue
        moved = True
        if free:
            label = _unite_slices(label, table, free[0])
            stuck.append((_beside_fixed(table, free[0]), f"{table.where} lays it beside places of fixed number"))
        else:
            stuck.append((table.ids.reshape(-1), _why_stuck(table, bool(inside[table.ids].any()))))
    if left and not moved:
        table, free = left.pop(0)
        choice = max(free, key=lambda axis: (_classes_after(label, table, axis), axis))
        label, moved = _unite_slices(label, table, choice), True
        stuck.append((_beside_fixed(table, choice), f"{table.where} lays it beside places of fixed number"))
    return label, [table for table, _ in left], moved


def _attention_axes(heads: Ids, free: list[int], freedom: Freedom) -> list[int]:
    """Of a table inside attention: the axis that counts heads, or the one inside a head."""
    if freedom == "channel":
        return []
    counting = [axis for axis in free if (heads != heads.take([0], axis)).any()]
    mixed = [axis for axis in counting if len(np.unique(heads)) < heads.shape[axis]]  # heads side by side
    if freedom == "head":
        return [axis for axis in counting if axis not in mixed][:1] or mixed[:1]
    return [axis for axis in free if axis not in counting][:1] or mixed[:1]


def _why_stuck(table: Table, attention: bool) -> str:
    if attention:
        return "it lies inside attention: units 'head' and 'head_dim' remove from it"
    return f"the parts it is cut into by {table.where} have fixed places"


def _classes_after(label: Ids, table: Table, axis: int) -> int:
    rows = np.moveaxis(label[_unite_slices(label, table, axis)[table.ids]], axis, 0)
    return len(np.unique(rows.reshape(rows.shape[0], -1)[:, 0]))


def _unite_slices(label: Ids, table: Table, axis: int) -> Ids:
    """Everything in one slice across ``axis`` goes together."""
    return components(label, _star(_slices(table, axis)))


def _slices(table: Table, axis: int) -> Ids:
    return np.moveaxis(table.ids, axis, 0).reshape(table.ids.shape[axis], -1)


def _beside_fixed(table: Table, axis: int) -> Ids:
    """Ids in slices that also hold padding or places that stay: such a slice cannot go as a whole."""
    rows = _slices(table, axis)
    return rows[(rows < FIRST_ID).any(1)].reshape(-1)


def _star(rows: Ids) -> Ids:
    """Pairs that tie each row to its first real id."""
    real = rows >= FIRST_ID
    first = np.take_along_axis(rows, real.argmax(1)[:, None], 1)
    pairs = np.stack([np.broadcast_to(first, rows.shape).reshape(-1), rows.reshape(-1)])
    return pairs[:, (pairs >= FIRST_ID).all(0)]


def _finish(relations: Relations, label: Ids, inside: Mask, stuck: list[tuple[Ids, str]], exact: bool) -> Solution:
    reasons, inexact = dict[int, str](), dict[int, str]()
    for ids, why in [*((event.ids, event.reason) for event in relations.frozen), *stuck]:
        for one in np.unique(label[ids[ids >= FIRST_ID]]):
            reasons.setdefault(int(one), why)
    for link in relations.links:
        torn = (label[link.one] != label[link.many]) | (link.many < FIRST_ID)
        for one in np.unique(label[link.one[torn]]):
            reasons.setdefault(int(one), "it is spread over an axis of which single slices may go")
    for event in relations.inexact:
        for one in np.unique(label[event.ids]):
            inexact.setdefault(int(one), event.reason)
    for rows in relations.statistics:
        if rows.shape[1] > 1 and (not exact or rows.shape[0] == 1):
            for one in np.unique(label[rows[rows >= FIRST_ID]]):
                inexact.setdefault(int(one), "a group norm takes mean and variance over it")

    def spread(ids: list[Ids]) -> Mask:
        hit = np.zeros(relations.count, bool)
        if ids:
            hit[label[np.concatenate(ids)]] = True
        return hit[label]

    frozen = np.zeros(relations.count, bool)
    frozen[:FIRST_ID] = True
    frozen[list(reasons)] = True
    within = spread([np.flatnonzero(inside)]) if inside.any() else inside
    squares, consumed, met = (spread(ids) for ids in (relations.squares, relations.consumed, relations.met))
    return Solution(label, frozen[label], within, squares, consumed, met, reasons, inexact)
