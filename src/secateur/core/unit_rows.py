"""Whole units as rows: what criteria of level "unit" read that look at the weights of a unit together, or at pairs.

Kinds of evidence in ``ROW_KINDS`` reach such a criterion as ``[groups, units, n]``, one row per unit:

    unit      weight                          bias, bn_scale      outgoing
    filter    I/g * kernel weights of it      its one number      -
    channel   all that its producers have     one per producer    all that the next layers read it with

``groups`` is above 1 for a grouped convolution alone: filters of different groups read different inputs, so the dot
product of two of them is zero whatever their weights are. Of a channel with several producers, or several positions
in one of them, the rows stand side by side: two channels are alike if they are alike everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.core.canonical import grouped_shape, to_grouped, wide
from secateur.core.unit_channel import Channel, owned_rows
from secateur.types import KeyLayout, Member, Tensors, Unit

__all__ = ["ROW_KINDS", "side_by_side", "unit_rows"]

ROW_KINDS = frozenset({"weight", "bias", "bn_scale", "outgoing"})
"""Evidence that comes as rows of units; other evidence of level "unit" has one number per output of a layer."""


def unit_rows(kind: str, tensors: Tensors, key: str, layout: KeyLayout, unit: Unit) -> Tensor:
    """The rows of all units of one key.

    Args:
        kind: one of ``ROW_KINDS``.
        tensors: the evidence: parameter name -> tensor; for a filter's ``bias`` and ``bn_scale`` ``[outputs]`` under
            the name of the layer's weight. The bias of a channel may stand under the name of its producer too, in
            its shape but for axes of length 1.
        key: parameter or group.
        layout: of it.
        unit: filter or channel.

    Returns:
        ``[groups, units, n]``, at least float32; n may be 0 for ``bias`` and ``bn_scale``.

    Raises:
        ValueError: for weights that are not among the evidence.

    Example:
        >>> from secateur.core.units import Filter
        >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> unit_rows("weight", {"fc": weight}, "fc", KeyLayout((2, 2)), Filter()).tolist()
        [[[1.0, 2.0], [3.0, 4.0]]]
    """
    if not isinstance(unit, Channel):
        if key not in tensors:
            raise ValueError(f"evidence {kind!r} has nothing for the parameter {key!r}")
        groups, outputs, *_ = grouped_shape(layout)
        if kind == "weight":
            return wide(to_grouped(tensors[key], layout).flatten(2))
        return wide(tensors[key]).reshape(groups, outputs, 1)
    members = _members(kind, tensors, layout, unit)
    if missing := [member.name for member in members if member.name not in tensors]:
        raise ValueError(f"group {key!r} is scored by {kind!r} of {missing[0]!r}, which is not among the evidence")
    rows = [side_by_side(tensors[member.name], member, layout.shape[0]) for member in members]
    return torch.cat(rows, 1)[None] if rows else torch.zeros(1, layout.shape[0], 0)


def _members(kind: str, tensors: Tensors, layout: KeyLayout, unit: Channel) -> tuple[Member, ...]:
    if kind == "weight":
        return unit.members(layout)
    if kind == "outgoing":
        return tuple(member for member in layout.members if member.part == "in")
    return tuple(member for member in layout.members if member.part in ("out", "follows") and member.name in tensors)


def side_by_side(tensor: Tensor, member: Member, units: int) -> Tensor:
    """What a tensor has of each unit.

    Args:
        tensor: as a member says.
        member: its axis and owners.
        units: how many there are.

    Returns:
        ``[units, positions * elements]``; zeros where a unit has fewer positions than another.
    """
    rows, owner = owned_rows(wide(tensor), member)
    order = owner.argsort(stable=True)
    counts = torch.bincount(owner, minlength=units)
    place = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner[order]]
    made = rows.new_zeros(units, int(counts.max()), rows.shape[1])
    made[owner[order].to(rows.device), place.to(rows.device)] = rows[order.to(rows.device)]
    return made.flatten(1)
