"""How two planes that meet element by element are related."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.model.graph.planes import CONSTANT, Kind, Plane, Traced
from secateur.model.graph.relations import Relations

__all__ = ["aggregate", "join", "meet"]


def meet(relations: Relations, one: Plane, other: Plane, reason: str) -> Plane | None:
    """Relate two planes of one shape; the plane of the result, None where they say nothing about each other.

    Along equal axes ids are united. Where one varies along fewer axes, it is a whole row or column of the other: it
    goes only if all of that goes. Planes that share an axis and each have one of their own are frozen.
    """
    a, b = one.axes, other.axes
    if a == b:
        relations.unite(one.ids, other.ids, reason)
        return Plane(one.shape, torch.where(one.ids == CONSTANT, other.ids, one.ids))
    if a < b:
        relations.link(one.ids, other.ids)
        return other
    if b < a:
        relations.link(other.ids, one.ids)
        return one
    if a & b:
        for plane in (one, other):
            relations.freeze(plane.ids, f"{reason} crosses two of its axes")
        return one
    return None


def join(
    relations: Relations, inputs: Sequence[tuple[Traced, Sequence[int]]], shape: Sequence[int], reason: str
) -> Traced:
    """What is known of the result of an elementwise operator.

    Args:
        relations: added to.
        inputs: what is known of each tensor, with its shape.
        shape: of the result.
        reason: of what gets frozen.

    Returns:
        The planes of all inputs, related.
    """
    moving = any(t.kind == "activation" and t.planes for t, _ in inputs)
    planes: list[Plane] = []
    for traced, _ in sorted(inputs, key=lambda pair: pair[0].kind != "activation"):
        # Planes of one tensor say nothing about each other, even where both vary along one axis.
        before, fresh = len(planes), list[Plane]()
        for plane in traced.planes:
            related = _place(relations, planes, before, plane.aligned(shape), reason)
            if not related and not (moving and traced.kind == "parameter"):
                fresh.append(plane.aligned(shape))
        planes += fresh
    for traced, given in inputs:
        if not traced.planes and traced.kind in ("frozen", "activation"):
            _hold(relations, planes, given, shape, reason)
    return Traced(_kind([traced for traced, _ in inputs], planes), tuple(planes), any(t.data for t, _ in inputs))


def _place(relations: Relations, planes: list[Plane], before: int, plane: Plane, reason: str) -> bool:
    related = False
    for place, found in enumerate(planes[:before]):
        result = meet(relations, found, plane, reason)
        if result is not None:
            planes[place], related = result, True
    return related


def _hold(
    relations: Relations, planes: Sequence[Plane], given: Sequence[int], shape: Sequence[int], reason: str
) -> None:
    """A tensor whose slices are unknown keeps the length of the axes that it fills."""
    missing = len(shape) - len(given)
    for plane in planes:
        if any(axis >= missing and given[axis - missing] > 1 for axis in plane.axes):
            relations.freeze(plane.ids, f"{reason} meets a tensor of fixed size")


def _kind(inputs: Sequence[Traced], planes: Sequence[Plane]) -> Kind:
    kinds = {traced.kind for traced in inputs}
    if kinds <= {"constant"}:
        return "constant"
    if kinds <= {"constant", "parameter"}:
        return "parameter" if "parameter" in kinds and planes else "constant"
    return "activation" if planes or "activation" in kinds or "parameter" in kinds else "frozen"


def aggregate(relations: Relations, plane: Plane, axis: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """One id for every distinct row of a plane that is summed over ``axis``; None where it varies along no other.

    Such an id goes only together with its whole row.

    Returns:
        The ids, with size 1 along ``axis``; and elementwise the row ids and the ids of their rows.
    """
    if not plane.axes - {axis}:
        return None
    rows = plane.matrix(axis)
    _, inverse = torch.unique(rows, dim=0, return_inverse=True)
    ids = relations.new_ids(int(inverse.max()) + 1)[inverse]
    relations.link(ids[:, None], rows)
    shape = [1 if place == axis else size for place, size in enumerate(plane.ids.shape)]
    return ids.reshape(shape), ids[:, None].expand_as(rows), rows
