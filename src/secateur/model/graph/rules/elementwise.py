"""Operators on each element, norms, reductions, pooling, and writes into a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.model.graph.planes import Plane, Traced
from secateur.model.graph.rules.joining import aggregate, join
from secateur.model.graph.trace import Tracer, where

__all__ = [
    "along_axis",
    "batch_norm",
    "constant",
    "group_norm",
    "in_place",
    "layer_norm",
    "pointwise",
    "pool",
    "reduce",
    "rms_norm",
    "scalar",
    "unknown",
    "write",
]


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    flat: list[Tensor] = []
    for value in [*args, *kwargs.values()]:
        flat += [item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, Tensor)]
    return flat


def _outputs(out: Any) -> list[Tensor]:
    return [item for item in (out if isinstance(out, (list, tuple)) else [out]) if isinstance(item, Tensor)]


def pointwise(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """What meets element by element lives and dies together."""
    inputs = [(tracer.of(tensor) or Traced("constant"), _own_sizes(tensor)) for tensor in _tensors(args, kwargs)]
    for made in _outputs(out):
        tracer.set(made, join(tracer.relations, inputs, made.shape, where()))


def _own_sizes(tensor: Tensor) -> list[int]:
    """The shape without what ``expand`` added: that follows whatever it was expanded for."""
    return [1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def in_place(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """The same, written into the first tensor, and so into the tensor that it is a view of."""
    pointwise(tracer, func, args, kwargs, out)
    target, traced = args[0], tracer.of(out)
    if traced is None:
        return
    tracer.set(target, traced)
    base = target._base
    if base is not None and base.shape != target.shape:
        _write_through(tracer, base, traced)


def write(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Rows written at numbered places: along the other axes the rows and the target live and die together."""
    values = [tensor for tensor in _tensors(args[1:], kwargs) if tensor.is_floating_point()]
    known = tracer.of(args[0]) or Traced("constant")
    for value in values:
        traced = tracer.of(value)
        if traced is None:
            continue
        for plane in traced.planes:
            missing = out.dim() - len(plane.shape)
            axes = {axis + missing for axis in plane.axes}
            if missing < 0 or any(plane.shape[axis - missing] != out.shape[axis] for axis in axes):
                tracer.relations.freeze(plane.ids, f"it is written to numbered places in {where()}")
                continue
            wide = Plane(tuple(out.shape), plane.aligned(out.shape).ids)
            known = join(
                tracer.relations, [(known, out.shape), (Traced("activation", (wide,)), out.shape)], out.shape, where()
            )
    tracer.set(out, known)
    tracer.set(args[0], known)


def _write_through(tracer: Tracer, base: Tensor, traced: Traced) -> None:
    known = tracer.of(base) or Traced("constant")
    for plane in traced.planes:
        same = len(plane.shape) == base.dim() and all(plane.shape[axis] == base.shape[axis] for axis in plane.axes)
        if same:
            wide = Traced("activation", (Plane(tuple(base.shape), plane.ids),))
            known = join(tracer.relations, [(known, base.shape), (wide, base.shape)], base.shape, where())
        else:
            tracer.relations.freeze(plane.ids, f"it is written into a part of a tensor in {where()}")
    tracer.set(base, known)


def batch_norm(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Scale, shift and statistics of each channel go with it."""
    x, made = args[0], _outputs(out)[0]
    inputs = [(tracer.of(x) or Traced("constant"), x.shape)]
    for tensor in _tensors(args[1:5], {}):
        follows = tracer.of(tensor)
        if follows is not None and tensor.numel():
            shape = (tensor.shape[0], *[1] * (x.dim() - 2))
            inputs.append((follows.moved(lambda ids, shape=shape: ids.reshape(shape)), shape))
    tracer.set(made, join(tracer.relations, inputs, x.shape, where()))


def layer_norm(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Mean and variance run over the slices, so that removing one changes the others."""
    x, axes = args[0], len(args[1])
    normalised = range(x.dim() - axes, x.dim())
    traced = tracer.of(x)
    for plane in () if traced is None else traced.planes:
        if plane.axes & set(normalised):
            tracer.relations.blur(plane.ids, "a layer norm takes mean and variance over it")
    _affine(tracer, x, args[2:4], _outputs(out)[0])


def rms_norm(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """The mean of squares runs over the slices; exact once scale and epsilon are rescaled."""
    x = args[0]
    traced = tracer.of(x)
    for plane in () if traced is None else traced.planes:
        if plane.axes & set(range(x.dim() - len(args[1]), x.dim())):
            tracer.relations.mean_square(plane.ids)
    _affine(tracer, x, args[2:3], _outputs(out)[0])


def _affine(tracer: Tracer, x: Tensor, parameters: Sequence[Any], out: Tensor) -> None:
    inputs = [(tracer.of(x) or Traced("constant"), x.shape)]
    for tensor in parameters:
        follows = tracer.of(tensor)
        if follows is not None:
            inputs.append((follows, tensor.shape))
    tracer.set(out, join(tracer.relations, inputs, out.shape, where()))


def group_norm(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Statistics run over the channels of a group: only whole groups can go without changing the others."""
    x, groups, made = args[0], args[6], _outputs(out)[0]
    traced = tracer.of(x)
    for plane in () if traced is None else traced.varying(1):
        for row in plane.matrix(1):
            tracer.relations.normalise(row.reshape(groups, -1))
    inputs = [(traced or Traced("constant"), x.shape)]
    for tensor in _tensors(args[1:3], {}):
        follows, shape = tracer.of(tensor), (x.shape[1], *[1] * (x.dim() - 2))
        if follows is not None:
            inputs.append((follows.moved(lambda ids, shape=shape: ids.reshape(shape)), shape))
    tracer.set(made, join(tracer.relations, inputs, x.shape, where()))


def reduce(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Sums, means and norms; over slices a sum of zeros is exact, a mean is not, a maximum is refused."""
    x, traced = args[0], tracer.of(args[0])
    if traced is None:
        return
    name = func.overloadpacket.__name__
    gone = _reduced_axes(name, args, kwargs, x)
    made = _outputs(out)
    keep = made[0].dim() == x.dim()
    planes: list[Plane] = []
    for plane in traced.planes:
        if plane.axes & gone:
            _mixed(tracer, plane, name, traced)
            rows = aggregate(tracer.relations, plane, min(plane.axes & gone)) if _sums_rows(plane, gone, name) else None
            if rows is None:
                continue
            plane = Plane(plane.shape, rows[0])
        shape = [1 if axis in gone else size for axis, size in enumerate(plane.shape)]
        ids = plane.ids
        if not keep:
            ids = ids.reshape([size for axis, size in enumerate(ids.shape) if axis not in gone])
            shape = [size for axis, size in enumerate(shape) if axis not in gone]
        planes.append(Plane(tuple(shape), ids))
    if traced.kind == "parameter" and "norm" in name:
        for plane in planes:
            tracer.relations.use(plane.ids, "direction")
    kind = traced.kind if planes or traced.kind != "activation" else "activation"
    for one in made:
        if tuple(one.shape) == (planes[0].shape if planes else tuple(one.shape)):
            tracer.set(one, Traced(kind, tuple(planes), traced.data))


def _reduced_axes(name: str, args: Any, kwargs: Any, x: Tensor) -> frozenset[int]:
    place = 2 if "norm" in name else 1
    dims = args[place] if len(args) > place else kwargs.get("dim")
    if isinstance(dims, bool) or dims is None or dims == []:
        return frozenset(range(x.dim()))
    dims = [dims] if isinstance(dims, int) else dims
    return frozenset(dim % max(x.dim(), 1) for dim in dims)


def _sums_rows(plane: Plane, gone: frozenset[int], name: str) -> bool:
    return name in (*_EXACT, "mean") and len(plane.axes & gone) == 1


_EXACT = {"sum", "linalg_vector_norm", "norm"}


def _mixed(tracer: Tracer, plane: Plane, name: str, traced: Traced) -> None:
    """A reduction over slices."""
    relations = tracer.relations
    if traced.kind == "parameter" and "norm" in name:
        relations.blur(plane.ids, "a norm of the weights runs over it")
    elif name in _EXACT:
        relations.consume(plane.ids, weights=False)
    elif name == "mean":
        relations.mean_square(plane.ids)
    elif name in ("var", "var_mean", "std", "std_mean"):
        relations.blur(plane.ids, f"a variance is taken over it in {where()}")
        relations.consume(plane.ids, weights=False)
    elif traced.kind != "parameter":
        relations.freeze(plane.ids, f"{name} runs over it in {where()}")


def along_axis(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Softmax, cumulative sums, sorting: slices may pass beside the axis, not along it."""
    traced = tracer.of(args[0])
    if traced is None:
        return
    name, order = func.overloadpacket.__name__, args[0].dim()
    place = 2 if name == "topk" else 1
    dim = args[place] if len(args) > place else kwargs.get("dim", None if name in _OVER_ALL else -1)
    gone = set(range(order)) if dim is None else {int(dim) % max(order, 1)}
    planes: list[Plane] = []
    for plane in traced.planes:
        if plane.axes & gone:
            tracer.relations.freeze(plane.ids, f"{name} runs over it in {where()}")
        else:
            planes.append(plane)
    for made in _outputs(out):
        left = [axis for axis in range(order) if made.dim() == order or axis not in gone]
        beside = (Plane(tuple(made.shape), p.ids.reshape([p.ids.shape[axis] for axis in left])) for p in planes)
        tracer.set(made, Traced(traced.kind, tuple(beside), traced.data))


_OVER_ALL = {"argmax", "argmin", "max", "min"}
"""Without an axis they run over all elements."""


def pool(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Pooling and resampling of space: channels pass through."""
    traced = tracer.of(args[0])
    if traced is None:
        return
    spatial = set(range(2 if args[0].dim() == _outputs(out)[0].dim() > 2 else 1, args[0].dim()))
    for plane in traced.planes:
        if plane.axes & spatial:
            tracer.relations.freeze(plane.ids, f"{where()} mixes it along space")
    planes = [plane for plane in traced.planes if not plane.axes & spatial]
    for made in _outputs(out):
        tracer.set(
            made, Traced(traced.kind, tuple(Plane(tuple(made.shape), plane.ids) for plane in planes), traced.data)
        )


def constant(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Tensors that are made, not computed."""
    for made in _outputs(out):
        tracer.set(made, Traced("constant"))


def scalar(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A number is read out of a tensor: a branch of the program may depend on it."""
    traced = tracer.of(args[0])
    if traced is not None and traced.data and args[0].dtype in (torch.bool, *_FLOATS):
        tracer.relations.branches.append(where())


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def unknown(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """An operator without a rule: what goes in keeps its size."""
    touched = [tracer.of(tensor) for tensor in _tensors(args, kwargs)]
    name = str(func.overloadpacket)
    for traced in touched:
        if traced is not None and traced.planes:
            tracer.freeze(traced, f"the tracer has no rule for {name} in {where()}")
            if name not in tracer.relations.unknown:
                tracer.relations.unknown.append(name)
    data = any(traced is not None and traced.data for traced in touched)
    for made in _outputs(out):
        tracer.set(made, Traced("activation" if any(touched) else "constant", (), data))
