"""What torch's operators mean to the runtime: one table, everything else stays with torch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Meaning", "constant", "meaning", "sample_shape", "shape_of"]

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Meaning:
    """An operator that the runtime knows.

    Attributes:
        kind: a name of ``secateur.runtime.graph.KINDS``, or ``norm`` (folded into a
            convolution), ``activation``, ``same``.
        values: the nodes that it reads.
        lead: axes before those of a sample; None: as in what it reads.
        numbers: the rest: weight, bias, stride and so on.
        through: operators that it stands for too, in their order, between what it reads and itself.
    """

    kind: str
    values: tuple[fx.Node, ...]
    lead: int | None = None
    numbers: dict[str, Any] = field(default_factory=dict[str, Any])
    through: tuple[fx.Node, ...] = ()


def shape_of(node: fx.Node) -> tuple[Any, ...] | None:
    """The shape of a value, some lengths symbolic; None if it is no float32 tensor on the CPU."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.device.type != "cpu":
        return None
    return tuple(value.shape)


def sample_shape(node: fx.Node, lead: int) -> tuple[int, ...] | None:
    """The lengths behind the axes of samples; None if one is not known."""
    shape = shape_of(node)
    if shape is None or len(shape) <= lead or not all(isinstance(length, int) for length in shape[lead:]):
        return None
    return shape[lead:]


def constant(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor behind a parameter or buffer of the graph."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found if isinstance(found, Tensor) else None


def _arguments(node: fx.Node, *names_and_defaults: tuple[str, Any]) -> list[Any]:
    given = dict(node.kwargs)
    values = list(node.args)
    return [
        values[i] if i < len(values) else given.get(name, default)
        for i, (name, default) in enumerate(names_and_defaults)
    ]


def _given(node: fx.Node) -> list[Any]:
    return list(node.args)


_NEEDED = object()


def _layer(module: fx.GraphModule, weight: Any, bias: Any) -> dict[str, Any] | None:
    w, b = constant(module, weight), constant(module, bias)
    if w is None or w.dtype != torch.float32 or (bias is not None and b is None):
        return None
    return {"weight": w, "bias": b, "parameter": str(weight.target)}


def _linear(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    x, weight, bias = _arguments(node, ("input", _NEEDED), ("weight", _NEEDED), ("bias", None))
    layer, shape = _layer(module, weight, bias), shape_of(node)
    if layer is None or shape is None or layer["weight"].ndim != 2:
        return None
    return Meaning("linear", (x,), len(shape) - 1, layer)


def _pair(value: Any) -> tuple[int, int]:
    items = [value] if isinstance(value, int) else list(value)
    return (items[0], items[-1])


def _conv(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    x, weight, bias, stride, padding, dilation, groups = _arguments(
        node, ("input", _NEEDED), ("weight", _NEEDED), ("bias", None), ("stride", 1), ("padding", 0), ("dilation", 1),
        ("groups", 1),
    )  # fmt: skip
    layer = _layer(module, weight, bias)
    if layer is None or isinstance(padding, str) or _pair(dilation) != (1, 1) or len(shape_of(node) or ()) != 4:
        return None
    kernel = tuple(layer["weight"].shape[2:])
    if _pair(stride)[0] != _pair(stride)[1] or _pair(padding)[0] != _pair(padding)[1]:
        return None
    numbers = {"stride": _pair(stride), "padding": _pair(padding), "groups": groups, "kernel": kernel}
    return Meaning("conv", (x,), 1, layer | numbers)


def _norm(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    """The first result of a batch norm in eval mode: per channel a factor and a shift."""
    norm, place = _given(node)
    if place != 0 or not isinstance(norm, fx.Node):
        return None
    if norm.target is not aten._native_batch_norm_legit_no_training.default:
        return None
    x, weight, bias, mean, var, _, eps = _given(norm)
    mean, var = constant(module, mean), constant(module, var)
    if mean is None or var is None:
        return None
    scale = 1.0 / torch.sqrt(var.double() + eps)
    weight, bias = constant(module, weight), constant(module, bias)
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale + (0.0 if bias is None else bias.double())
    return Meaning("norm", (x,), None, {"scale": scale, "shift": shift}, (norm,))


def _shortcut(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    """Every second pixel, and more channels of zeros: a convolution with one weight per channel that it keeps."""
    x, pads, mode, value = _arguments(node, ("input", _NEEDED), ("pad", _NEEDED), ("mode", "constant"), ("value", None))
    shape = shape_of(node)
    if mode != "constant" or value or shape is None or len(shape) != 4 or len(pads) not in (4, 6) or any(pads[:4]):
        return None
    source, steps, through = _sliced(x)
    before = shape_of(source)
    if before is None or steps[2] != steps[3] or steps[:2] != [1, 1]:
        return None
    weight = torch.zeros(shape[1], before[1], 1, 1, dtype=torch.float32)
    first = pads[4] if len(pads) == 6 else 0
    channels = torch.arange(before[1])
    weight[channels + first, channels] = 1.0
    numbers = {"weight": weight, "bias": None, "parameter": node.name, "stride": (steps[2], steps[3]), "fixed": True}
    return Meaning("conv", (source,), 1, numbers, tuple(reversed(through)))


def _sliced(node: fx.Node) -> tuple[fx.Node, list[int], list[fx.Node]]:
    """What slices that begin at 0 and leave nothing out at the end are taken of, their steps, and the slices."""
    steps, through = [1] * 4, list[fx.Node]()
    while node.target is aten.slice.Tensor and len(node.users) == 1:
        x, axis, start, end, step = [*_given(node), *[0, None, None, 1][len(node.args) - 1 :]]
        length = (shape_of(x) or (0, 0, 0, 0))[axis]
        whole = end is None or (isinstance(length, int) and end >= length) or end == 2**63 - 1
        if start not in (None, 0) or not whole or (axis == 0 and step != 1):
            break
        steps[axis] *= step
        through.append(node)
        node = x
    return node, steps, through


def _layer_norm(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    """Over the last axis alone."""
    x, lengths, weight, bias, eps = _arguments(
        node, ("input", _NEEDED), ("normalized_shape", _NEEDED), ("weight", None), ("bias", None), ("eps", 1e-5)
    )
    scale, shift, shape = constant(module, weight), constant(module, bias), shape_of(node)
    if (
        len(lengths) != 1
        or shape is None
        or (weight is not None and scale is None)
        or (bias is not None and shift is None)
    ):
        return None
    return Meaning("layer_norm", (x,), len(shape) - 1, {"scale": scale, "bias": shift, "eps": eps})


def _add(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    a, b = _given(node)[:2]
    both = isinstance(a, fx.Node) and isinstance(b, fx.Node)
    if not both or node.kwargs.get("alpha", 1) != 1 or shape_of(a) is None or shape_of(a) != shape_of(b):
        return None
    return Meaning("add", (a, b))


def _max_pool(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    x, kernel, stride, padding, dilation, ceil = _arguments(
        node, ("input", _NEEDED), ("kernel_size", _NEEDED), ("stride", []), ("padding", 0), ("dilation", 1),
        ("ceil_mode", False),
    )  # fmt: skip
    if _pair(dilation) != (1, 1) or ceil or len(shape_of(node) or ()) != 4:
        return None
    numbers = {"kernel": _pair(kernel), "stride": _pair(stride or kernel), "padding": _pair(padding)}
    return Meaning("max_pool", (x,), 1, numbers)


def _average_pool(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    x, kernel, stride, padding, ceil, count, divisor = _arguments(
        node, ("input", _NEEDED), ("kernel_size", _NEEDED), ("stride", []), ("padding", 0), ("ceil_mode", False),
        ("count_include_pad", True), ("divisor_override", None),
    )  # fmt: skip
    if ceil or divisor is not None or len(shape_of(node) or ()) != 4:
        return None
    numbers = {"kernel": _pair(kernel), "stride": _pair(stride or kernel), "padding": _pair(padding)}
    return Meaning("average_pool", (x,), 1, numbers | {"count_padding": bool(count)})


def _mean(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    """Over all places of an image."""
    x, shape = _given(node)[0], shape_of(node)
    if not isinstance(x, fx.Node) or len(shape_of(x) or ()) != 4 or shape is None:
        return None
    if node.target is aten.mean.dim:
        if sorted(axis % 4 for axis in _given(node)[1]) != [2, 3] or node.kwargs.get("dtype") is not None:
            return None
    elif shape[2:] != (1, 1):
        return None
    return Meaning("mean", (x,), 1)


def _flatten(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    """``[N, C, H, W]`` to ``[N, C * H * W]``."""
    x, shape = _given(node)[0], shape_of(node)
    before = shape_of(x) if isinstance(x, fx.Node) else None
    if shape is None or before is None or len(shape) != 2 or len(before) < 2 or not isinstance(shape[1], int):
        return None
    inner = before[1:]
    if not all(isinstance(length, int) for length in inner) or torch.Size(inner).numel() != shape[1]:
        return None
    return Meaning("flatten", (x,), 1)


def _gelu(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    kind = "gelu_tanh" if node.kwargs.get("approximate", "none") == "tanh" else "gelu"
    return _activation(kind)(module, node)


def _leaky(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    """With the slopes that networks use."""
    slope = _arguments(node, ("input", _NEEDED), ("negative_slope", 0.01))[1]
    return _activation(f"leaky_relu_{slope}")(module, node) if slope in (0.1, 0.01) else None


def _hardtanh(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    """As relu6 is exported."""
    _, low, high = _arguments(node, ("input", _NEEDED), ("min_val", -1.0), ("max_val", 1.0))
    return _activation("relu6")(module, node) if (low, high) == (0, 6) else None


def _activation(name: str) -> Callable[[fx.GraphModule, fx.Node], Meaning | None]:
    def read(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
        x = _given(node)[0]
        return Meaning("activation", (x,), None, {"activation": name}) if isinstance(x, fx.Node) else None

    return read


def _same(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    x = _given(node)[0]
    if node.target is aten.dropout.default and _arguments(node, ("", None), ("p", 0.5), ("train", True))[2]:
        return None  # it draws in eval mode too
    return Meaning("same", (x,)) if isinstance(x, fx.Node) and shape_of(x) == shape_of(node) else None


OPERATORS: dict[Any, Callable[[fx.GraphModule, fx.Node], Meaning | None]] = {
    aten.linear.default: _linear,
    aten.pad.default: _shortcut,
    aten.constant_pad_nd.default: _shortcut,
    aten.conv2d.default: _conv,
    operator.getitem: _norm,
    aten.add.Tensor: _add,
    aten.layer_norm.default: _layer_norm,
    aten.max_pool2d.default: _max_pool,
    aten.adaptive_avg_pool2d.default: _mean,
    aten.mean.dim: _mean,
    **dict.fromkeys((aten.view.default, aten.reshape.default, aten.flatten.using_ints), _flatten),
    aten.relu.default: _activation("relu"),
    aten.gelu.default: _gelu,
    aten.silu.default: _activation("silu"),
    aten.relu6.default: _activation("relu6"),
    aten.hardtanh.default: _hardtanh,
    aten.leaky_relu.default: _leaky,
    aten.hardswish.default: _activation("hardswish"),
    aten.avg_pool2d.default: _average_pool,
    **dict.fromkeys((aten.clone.default, aten.alias.default, aten.contiguous.default, aten.dropout.default), _same),
}
"""Operator -> (graph, node) -> its meaning, or None where its arguments are not for the runtime."""


def meaning(module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    """What a node means to the runtime; None: it stays with torch."""
    if node.op != "call_function" or node.target not in OPERATORS or shape_of(node) is None:
        return None
    return OPERATORS[node.target](module, node)
