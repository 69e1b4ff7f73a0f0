"""Operators that move elements around: they are run on the ids themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.model.graph.planes import CONSTANT, FROZEN, Plane, Traced
from secateur.model.graph.rules.joining import join
from secateur.model.graph.trace import Tracer, where

__all__ = [
    "by_place",
    "cat",
    "channel_shuffle",
    "glu",
    "index",
    "move",
    "pad",
    "patches",
    "same",
    "select",
    "shape_change",
    "slice_",
    "split",
    "stack",
    "unbind",
]


def same(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Copies and casts."""
    traced = tracer.of(args[0])
    if traced is not None:
        tracer.set(out, traced)


def move(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """The operator itself, on the ids."""
    traced = tracer.of(args[0])
    if traced is not None:
        tracer.set(out, traced.moved(lambda ids: func(ids, *args[1:], **kwargs)))


def by_place(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Moves by a number of places: along the axes they run over, fewer slices would land elsewhere."""
    source, name = args[0], func.overloadpacket.__name__
    traced = tracer.of(source)
    if traced is None:
        return
    if name == "roll":
        dims = list(args[2]) if len(args) > 2 else []
    else:
        dims = {"unfold": args[1:2], "diagonal": args[2:4] or (0, 1)}.get(name, (-2, -1))
    along = {dim % source.dim() for dim in dims or range(source.dim())}
    for plane in traced.planes:
        if plane.axes & along:
            tracer.relations.freeze(plane.ids, f"{name} moves it by a number of places in {where()}")
    tracer.set(out, traced.moved(lambda ids: func(ids, *args[1:], **kwargs)))


def channel_shuffle(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Channels are dealt out again in equal parts."""
    traced = tracer.of(args[0])
    if traced is None:
        return
    for plane in traced.varying(1):
        _parts(tracer, plane, 1, (args[1], args[0].shape[1] // args[1]), 0)
    tracer.set(out, traced.moved(lambda ids: func(ids, *args[1:], **kwargs)))


def patches(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Patches of an image as columns: every channel appears once for each place of a patch."""
    traced = tracer.of(args[0])
    if traced is None:
        return
    axis = args[0].dim() - 3
    for plane in traced.planes:
        if plane.axes - {axis}:
            tracer.relations.freeze(plane.ids, f"{where()} cuts it into patches along space")
    known = [plane.vector(axis) for plane in traced.planes if plane.axes == {axis}]
    places = out.shape[axis] // args[0].shape[axis]
    planes = tuple(Plane.along(axis, out.shape, ids.repeat_interleave(places)) for ids in known)
    tracer.set(out, Traced(traced.kind, planes, traced.data))


def shape_change(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Views; ids are expanded without memory, so a view of them may need a copy."""
    traced = tracer.of(args[0])
    if traced is not None:
        tracer.set(out, traced.moved(lambda ids: ids.reshape(out.shape)))


def slice_(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Part of an axis: equal parts and steps stay equal; any other part fixes its place."""
    source, dim = args[0], (args[1] if len(args) > 1 else 0)
    traced = tracer.of(source)
    if traced is None:
        return
    dim, size = dim % source.dim(), source.shape[dim]
    start, end, step = [*args[2:], *(None, None, None)[len(args[2:]) :]]
    start, end, step = _bounds(start, end, step, size)
    for plane in traced.varying(dim):
        if (end - start, step) != (size, 1):
            _part(tracer, plane, dim, start, end, step)
    tracer.set(out, traced.moved(lambda ids: func(ids, *args[1:], **kwargs)))


def _bounds(start: int | None, end: int | None, step: int | None, size: int) -> tuple[int, int, int]:
    first, last, stride = slice(start, end, step).indices(size)
    return first, last, stride


def _part(tracer: Tracer, plane: Plane, dim: int, start: int, end: int, step: int) -> None:
    size, length = plane.shape[dim], end - start
    if step > 1 and size % step == 0 and end == size and start < step:
        _parts(tracer, plane, dim, (size // step, step), 1)
    elif step == 1 and length and size % length == 0 and start % length == 0:
        _parts(tracer, plane, dim, (size // length, length), 0)
    else:
        tracer.relations.freeze(plane.ids, f"a part of constant size is cut out by {where()}")


def _parts(tracer: Tracer, plane: Plane, dim: int, sizes: tuple[int, int], pinned: int) -> None:
    """The axis is cut in equal parts that have to stay equal."""
    ids = plane.ids.unflatten(dim, sizes)
    shape = (*plane.shape[:dim], *sizes, *plane.shape[dim + 1 :])
    cut = Plane(shape, ids)
    wide = Plane.of(cut.full) if sizes[0] > 1 and sizes[1] > 1 else cut
    tracer.relations.table(wide, where(), pin=[dim + pinned])


def split(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Split and chunk."""
    source, dim = args[0], (args[2] if len(args) > 2 else kwargs.get("dim", 0))
    traced = tracer.of(source)
    if traced is None:
        return
    dim = dim % source.dim()
    lengths = [part.shape[dim] for part in out]
    for plane in traced.varying(dim) if len(lengths) > 1 else ():
        if len(set(lengths)) == 1:
            _parts(tracer, plane, dim, (len(lengths), lengths[0]), 0)
        else:
            _hold_parts(tracer, plane, dim, lengths)
    pieces = [func(plane.full, *args[1:], **kwargs) for plane in traced.planes]
    for place, part in enumerate(out):
        planes = tuple(Plane.of(piece[place]) for piece in pieces)
        tracer.set(part, Traced(traced.kind, planes, traced.data))


def glu(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """One half times the sigmoid of the other: halves live and die together."""
    source, dim = args[0], (args[1] if len(args) > 1 else -1) % args[0].dim()
    traced = tracer.of(source)
    if traced is None:
        return
    for plane in traced.varying(dim):
        _parts(tracer, plane, dim, (2, source.shape[dim] // 2), 0)
    halves = [traced.moved(lambda ids, half=half: ids.chunk(2, dim)[half]) for half in (0, 1)]
    tracer.set(out, join(tracer.relations, [(half, out.shape) for half in halves], out.shape, where()))


def _hold_parts(tracer: Tracer, plane: Plane, dim: int, lengths: Sequence[int]) -> None:
    """Parts of unequal sizes: the sizes are written down somewhere and can be rewritten, their places stay."""
    for piece in plane.full.split(list(lengths), dim):
        tracer.relations.table(Plane.of(piece), where())


def select(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """One place of an axis, by its number: the axis keeps its length."""
    traced = tracer.of(args[0])
    if traced is None:
        return
    dim = args[1] % args[0].dim()
    for plane in traced.varying(dim):
        tracer.relations.table(plane, where(), pin=[dim])
    tracer.set(out, traced.moved(lambda ids: func(ids, *args[1:], **kwargs)))


def unbind(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """All places of an axis as tensors of their own: the axis keeps its length."""
    traced = tracer.of(args[0])
    if traced is None:
        return
    dim = (args[1] if len(args) > 1 else 0) % args[0].dim()
    for plane in traced.varying(dim):
        tracer.relations.table(plane, where(), pin=[dim])
    for place, part in enumerate(out):
        tracer.set(part, traced.moved(lambda ids, place=place: ids.select(dim, place)))


def cat(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Side by side along one axis; along the others the inputs are united."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    parts = [part for part in args[0] if part.dim() == out.dim()]  # an empty legacy tensor adds nothing
    tracer.set(out, _side_by_side(tracer, [tracer.of(part) for part in parts], parts, dim % out.dim(), out.shape))


def stack(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Side by side along a new axis."""
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    known = [tracer.of(part) for part in args[0]]
    wide = [None if one is None else one.moved(lambda ids: ids.unsqueeze(dim)) for one in known]
    tracer.set(out, _side_by_side(tracer, wide, [part.unsqueeze(dim) for part in args[0]], dim, out.shape))


def _side_by_side(
    tracer: Tracer, known: Sequence[Traced | None], parts: Sequence[Tensor], dim: int, shape: Sequence[int]
) -> Traced:
    """Planes along ``dim`` are laid side by side; planes along other axes live and die together."""
    given = [one if one is not None else Traced("constant") for one in known]
    moving = [one for one in given if one.planes]
    data = any(one.data for one in given)
    if not moving:
        kinds = {one.kind for one in given}
        return Traced("constant" if kinds == {"constant"} else "frozen", (), data)
    planes: list[Plane] = []
    if any(one.varying(dim) for one in given) or len({tuple(p.axes) for one in moving for p in one.planes}) == 0:
        columns = [_column(one, part, dim) for one, part in zip(given, parts, strict=True)]
        wide = [column.expand(part.shape) for column, part in zip(columns, parts, strict=True)]
        planes.append(Plane.of(torch.cat(wide, dim)))
    planes += _across(tracer, given, parts, dim, shape)
    pure = all(one.kind in ("parameter", "constant") for one in given)
    return Traced("parameter" if pure else "activation", tuple(planes), data)


def _column(one: Traced, part: Tensor, dim: int) -> Tensor:
    found = one.varying(dim)
    if found:
        return found[0].full
    return torch.full((1,) * part.dim(), FROZEN if one.kind in ("frozen", "activation") else CONSTANT)


def _across(
    tracer: Tracer, given: Sequence[Traced], parts: Sequence[Tensor], dim: int, shape: Sequence[int]
) -> list[Plane]:
    """Planes that do not vary along ``dim``: those of all inputs along the same axes are one."""
    found: dict[frozenset[int], Plane] = {}
    activation = any(one.kind == "activation" and one.planes for one in given)
    chosen = {p.axes for one in given if one.kind == "activation" for p in one.planes}
    for one in given:
        for plane in one.planes:
            if dim in plane.axes or (activation and one.kind == "parameter" and plane.axes not in chosen):
                continue
            wide = Plane(tuple(shape), plane.ids)
            first = found.setdefault(plane.axes, wide)
            if first is not wide:
                tracer.relations.unite(first.ids, wide.ids, "a concatenation")
    for one, part in zip(given, parts, strict=True):
        if one.kind in ("frozen", "activation") and not one.planes:
            for plane in found.values():
                if any(part.shape[axis] > 1 for axis in plane.axes):
                    tracer.relations.freeze(plane.ids, f"{where()} puts it beside a tensor of fixed size")
    return list(found.values())


def pad(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Constant padding: what is padded on along an axis of slices has a fixed place."""
    traced = tracer.of(args[0])
    if traced is None:
        return
    widths = list(args[1])
    padded = {args[0].dim() - 1 - place for place in range(len(widths) // 2) if any(widths[2 * place : 2 * place + 2])}

    def grow(plane: Plane) -> Plane:
        if not padded & plane.axes:
            return Plane(tuple(out.shape), plane.ids)
        return Plane.of(torch.constant_pad_nd(plane.full, widths, FROZEN))

    tracer.set(out, Traced(traced.kind, tuple(grow(plane) for plane in traced.planes), traced.data))


def index(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Rows picked by a tensor of numbers; along an axis of slices that fixes their places."""
    source, picks = args[0], args[1]
    traced = tracer.of(source)
    if traced is None:
        tracer.set(out, Traced("constant"))
        return
    dims = _picked(func, source, args)
    for plane in traced.planes if traced.kind != "parameter" else ():
        if plane.axes & dims:
            tracer.relations.freeze(plane.ids, f"it is picked by number in {where()}")
    kept = tuple(plane for plane in traced.planes if not (traced.kind == "parameter" and plane.axes & dims))
    lost = tuple(plane for plane in traced.planes if plane not in kept)
    for plane in lost:
        tracer.relations.freeze(plane.ids, f"it is picked by number in {where()}")
    rest: Callable[[Tensor], Tensor] = lambda ids: func(ids, picks, *args[2:], **kwargs)  # noqa: E731
    kind = "activation" if traced.kind == "parameter" else traced.kind
    tracer.set(out, Traced(kind, tuple(plane.move(rest) for plane in kept), traced.data))


def _picked(func: Any, source: Tensor, args: Any) -> frozenset[int]:
    if func.overloadpacket is torch.ops.aten.index:
        return frozenset(axis for axis, pick in enumerate(args[1]) if pick is not None)
    return frozenset({args[1] % source.dim()})
