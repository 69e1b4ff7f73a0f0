"""Products that sum over an axis: linear layers, convolutions, embeddings, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.model.graph.planes import CONSTANT, FROZEN, Plane, Traced
from secateur.model.graph.rules import elementwise
from secateur.model.graph.rules.joining import aggregate, join, meet
from secateur.model.graph.trace import Tracer, where

__all__ = [
    "addmm",
    "batched",
    "convolution",
    "embedding",
    "grouped",
    "matrix_product",
    "vector_product",
    "weight_norm",
]

_UNSEEN = "it is multiplied with a tensor that the trace did not see made"


def matrix_product(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """``[M, K] @ [K, N]``."""
    tracer.set(out, _product(tracer, args[0], args[1], out))


def batched(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """``[B, M, K] @ [B, K, N]``."""
    tracer.set(out, _product(tracer, args[0], args[1], out))


def vector_product(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """``[M, K] @ [K]``, and the inner product of two vectors."""
    a, b = args[0], args[1]
    left = tracer.of(a)
    wide = None if left is None else left.moved(lambda ids: ids.unsqueeze(0)) if a.dim() == 1 else left
    right = tracer.of(b)
    tall = None if right is None else right.moved(lambda ids: ids.unsqueeze(1))
    made = _contract(tracer, wide, a.reshape(-1, a.shape[-1]), tall, b.unsqueeze(1), (out.numel(), 1))
    tracer.set(out, made.moved(lambda ids: ids.reshape(out.shape)))


def addmm(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """``bias + a @ b``, with or without a batch axis."""
    made = _product(tracer, args[1], args[2], out)
    bias = tracer.of(args[0])
    inputs = [(made, out.shape)] + ([] if bias is None else [(bias, args[0].shape)])
    tracer.set(out, join(tracer.relations, inputs, out.shape, where()))


def _product(tracer: Tracer, a: Tensor, b: Tensor, out: Tensor) -> Traced:
    return _contract(tracer, tracer.of(a), a, tracer.of(b), b, out.shape)


def _contract(
    tracer: Tracer, left: Traced | None, a: Tensor, right: Traced | None, b: Tensor, shape: Sequence[int]
) -> Traced:
    """Sum over the last axis of ``a`` and the last but one of ``b``."""
    for one, other in ((left, right), (right, left)):
        if one is None and other is not None and other.kind != "parameter":
            tracer.freeze(other, _UNSEEN)
        if one is None and other is not None and other.kind == "parameter":
            tracer.tainted = True
    left, right = left or Traced("frozen"), right or Traced("frozen")
    turned = right.moved(lambda ids: ids.transpose(-1, -2))  # [..., N, K]: both sum over the last axis
    last = a.dim() - 1
    planes = _sum_over(tracer, left, turned, last, shape)
    # What is not summed over lies in the result where it lay before: [..., M, 1] and [..., 1, N].
    planes += [Plane(tuple(shape), plane.ids) for plane in left.planes if last not in plane.axes]
    tail = [Plane(tuple(shape), plane.ids) for plane in right.planes if last - 1 not in plane.axes]
    if right.kind == "parameter":
        for plane in tail:
            tracer.relations.use(plane.ids, "out")
    if left.kind == "parameter":
        for plane in left.planes:
            tracer.relations.use(plane.ids, "in" if last in plane.axes else "out")
    kept = list(planes)
    for plane in tail:
        for place, found in enumerate(planes):
            result = meet(tracer.relations, found, plane, where())
            if result is not None:
                kept[place] = result
                break
        else:
            kept.append(plane)
    pure = left.kind == right.kind == "parameter"
    return Traced("parameter" if pure else "activation", tuple(kept), left.data or right.data)


def _sum_over(tracer: Tracer, left: Traced, right: Traced, axis: int, shape: Sequence[int]) -> list[Plane]:
    """Relate what is summed over; ``right`` is turned so that its last axis is the one."""
    relations, made = tracer.relations, list[Plane]()
    ours, theirs = left.varying(axis), right.varying(axis)
    if not theirs or not ours:
        _one_sided(tracer, ours or theirs, right if ours else left, left if ours else right)
        return made
    for plane in ours:
        match = _matching(plane, theirs, axis)
        meet(relations, plane, Plane(plane.shape, match.ids), where())
        weights = "parameter" in (left.kind, right.kind)
        relations.consume(plane.ids, weights=weights)
        if right.kind == "parameter":
            relations.use(match.ids, "in")
        else:
            relations.consume(match.ids, weights=weights)
        made += _rows_left(tracer, plane, axis, shape, heads=right.kind != "parameter" and left.kind != "parameter")
    return made


def _matching(plane: Plane, others: Sequence[Plane], axis: int) -> Plane:
    """The plane of the weight that is laid out as the activation is: one id of the one for one of the other."""
    ids = plane.matrix(axis)[0]
    for other in others if len(others) > 1 else ():
        theirs = other.matrix(axis)[0]
        pairs = torch.unique(torch.stack([ids, theirs]), dim=1).shape[1]
        if pairs <= max(torch.unique(ids).numel(), torch.unique(theirs).numel()):
            return other
    return others[0]


def _one_sided(tracer: Tracer, planes: Sequence[Plane], silent: Traced, own: Traced) -> None:
    """One operand has slices along the summed axis, the other is of fixed size there."""
    for plane in planes:
        if own.kind == "parameter" and silent.kind == "constant":
            continue
        tracer.relations.freeze(plane.ids, f"{where()} sums it with a tensor of fixed size")


def _rows_left(tracer: Tracer, plane: Plane, axis: int, shape: Sequence[int], *, heads: bool) -> list[Plane]:
    """The rows that a sum over one of several axes leaves: one id for every distinct row, of all of its ids."""
    found = aggregate(tracer.relations, plane, axis)
    if found is None:
        return []
    ids, one, many = found
    if heads:
        tracer.relations.head(one, many)
    return [Plane(tuple(shape), ids)]


def grouped(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """``[T, K] @ [E, K, N]``: rows are sent to one of several weights. Whole weights stay."""
    right = tracer.of(args[1])
    if right is not None and args[1].dim() == 3:
        for plane in right.varying(0):
            tracer.relations.freeze(plane.ids, "it is one of several weights that rows are sent to")
        flat = tuple(Plane(p.shape[1:], p.ids.squeeze(0)) for p in right.planes if 0 not in p.axes)
        right = Traced(right.kind, flat, right.data)
        tracer.set(out, _contract(tracer, tracer.of(args[0]), args[0], right, args[1][0], out.shape))
        return
    elementwise.unknown(tracer, func, args, kwargs, out)


def weight_norm(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """``g v / |v|``, where the norm runs over every axis but one."""
    direction, gain, dim = args[0], args[1], args[2] if len(args) > 2 else 0
    inputs = [(known, t.shape) for t in (direction, gain) if (known := tracer.of(t)) is not None]
    for traced, _ in inputs[:1]:
        for plane in traced.planes:
            if plane.axes == {dim}:
                tracer.relations.use(plane.ids, "direction")
            else:
                tracer.relations.blur(plane.ids, "a weight norm runs over it")
    for traced, _ in inputs[1:]:
        for plane in traced.planes:
            tracer.relations.use(plane.ids, "out")
    tracer.set(out[0], join(tracer.relations, inputs, direction.shape, where()))


def convolution(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Convolutions of any dimension, grouped and transposed."""
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    known, kernel = tracer.of(x), tracer.of(weight)
    if kernel is None:
        tracer.freeze(known, _UNSEEN)
        tracer.set(out, Traced("activation"))
        return
    relations = tracer.relations
    inward, outward = (0, 1) if transposed else (1, 0)
    slots = _axis_ids(tracer, kernel, weight, inward)
    made = _axis_ids(tracer, kernel, weight, outward)
    relations.use(slots, "in")
    relations.use(made, "out")
    channels = _channels(tracer, known, x)
    if transposed:  # [I, O/g]: every group writes to the same output slots
        made = made.repeat(groups)
    else:
        slots = slots.repeat(groups)
    relations.consume(channels, weights=True)
    relations.unite(channels, slots, where())
    if groups > 1:
        _equal_groups(tracer, channels, made, groups, depthwise=x.shape[1] == groups)
    result = Traced("activation", (Plane.along(1, out.shape, made),), bool(known and known.data))
    follows = tracer.of(bias)
    if follows is not None:
        as_map = follows.moved(lambda ids: ids.reshape(-1, *[1] * (out.dim() - 2)))
        result = join(
            relations, [(result, out.shape), (as_map, (out.shape[1], *[1] * (out.dim() - 2)))], out.shape, where()
        )
    tracer.set(out, result)


def _axis_ids(tracer: Tracer, kernel: Traced, weight: Tensor, axis: int) -> Tensor:
    """The slots along one axis of a weight; constants where that axis has one place."""
    found = [plane for plane in kernel.planes if plane.axes == {axis}]
    if found:
        return found[0].vector(axis)
    for plane in kernel.varying(axis):
        tracer.relations.freeze(plane.ids, "the weight is folded from several axes")
    return torch.zeros(weight.shape[axis], dtype=torch.int64)


def _channels(tracer: Tracer, known: Traced | None, x: Tensor) -> Tensor:
    """Ids of the input channels; ids at other places of the same channel are united with them."""
    if known is None:
        tracer.tainted = True
    if known is None or not known.varying(1):
        kind = "frozen" if known is None else known.kind
        for plane in () if known is None else known.planes:
            tracer.relations.freeze(plane.ids, f"it lies along space in {where()}")
        return torch.full((x.shape[1],), CONSTANT if kind == "constant" else FROZEN)
    for plane in known.planes:
        if 1 not in plane.axes:
            tracer.relations.freeze(plane.ids, f"it lies along space in {where()}")
    places = known.varying(1)[0].matrix(1)
    for row in places[1:]:
        tracer.relations.unite(places[0], row, where())
    return places[0]


def _equal_groups(tracer: Tracer, channels: Tensor, made: Tensor, groups: int, *, depthwise: bool) -> None:
    """The groups of a convolution stay equal: the same local places go from all; one map per group: whole groups go."""
    relations, why = tracer.relations, where()
    into, outof = channels.reshape(groups, -1), made.reshape(groups, -1)
    if depthwise:
        relations.unite(into.expand_as(outof), outof, why)
        return
    relations.unite(into[:1].expand_as(into), into, why)
    relations.unite(outof[:1].expand_as(outof), outof, why)


def embedding(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Rows of a table picked by id: what comes out lies along the table's second axis."""
    table = tracer.of(args[0])
    if table is None:
        return
    columns = [plane for plane in table.planes if plane.axes == {1}]
    for plane in columns:
        tracer.relations.use(plane.ids, "out")
    for plane in table.planes:
        if 0 in plane.axes:
            tracer.relations.freeze(plane.ids, "it is a row of a table that is read by number")
    made = out[0] if isinstance(out, tuple) else out  # a bag of rows also returns how it counted them
    planes = tuple(Plane.along(made.dim() - 1, made.shape, plane.vector(1)) for plane in columns)
    tracer.set(made, Traced("activation", planes))
