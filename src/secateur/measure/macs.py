"""Multiply-adds of one sample: which weight is used how often, seen by hooks on one shape-only forward.

Every layer that is counted here is linear in its weight, so its multiply-adds are
``uses * numel(weight)`` with a whole number of uses, and those that remain after pruning are
``uses * kept(weight)``. The forward runs on a copy on the meta device, which knows shapes and no
values: counting the 15 G multiply-adds of VGG16 costs milliseconds and leaves the model untouched.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from secateur.deploy.attention import Attention
from secateur.measure.quiet import quiet
from secateur.model.names import clean_name, unwrap

__all__ = ["CONVENTION", "SHRINKBENCH_CONVENTION", "Compat", "Use", "Uses", "count_uses", "first_sample"]

Compat: TypeAlias = Literal["shrinkbench"] | None

CONVENTION = "multiply-adds, convolutions and linear layers, one sample, no bias, BN, activation or pooling"
"""What ``macs`` means in every record. Attention adds its projections and the two products, 2 L^2 E;
a transposed convolution counts every input element times its kernel, cropped border included."""

SHRINKBENCH_CONVENTION = (
    "ShrinkBench: multiply-adds of Conv2d (as if 'same'-padded, groups ignored) and Linear (one token), "
    "one sample; zero-valued parameters count as pruned"
)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Use:
    """One weight, or the rows ``[start, stop)`` of its first axis, used ``times`` times by one sample."""

    parameter: str
    times: int
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Uses:
    """What one sample uses.

    Attributes:
        weights: module name -> its uses, one per call and weight.
        products: module name -> multiply-adds that read no weight (attention's two products).
        uncounted: names of modules that own a matrix and have no rule here.
    """

    weights: Mapping[str, tuple[Use, ...]]
    products: Mapping[str, int]
    uncounted: tuple[str, ...]


class _Tally:
    def __init__(self) -> None:
        self.weights: dict[str, list[Use]] = defaultdict(list)
        self.products: dict[str, int] = defaultdict(int)

    def use(self, module: str, parameter: str, times: int, rows: tuple[int, int] | None = None) -> None:
        self.weights[module].append(Use(_join(module, parameter), times, rows))


_Rule: TypeAlias = Callable[[_Tally, str, Any, tuple[Any, ...], Mapping[str, Any], Any], None]


def _join(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def _conv(tally: _Tally, name: str, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
    tally.use(name, "weight", out.numel() // layer.out_channels)


def _conv_transpose(
    tally: _Tally, name: str, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
) -> None:
    source = args[0] if args else kwargs["input"]
    tally.use(name, "weight", source.numel() // layer.in_channels)


def _linear(tally: _Tally, name: str, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
    tally.use(name, "weight", out.numel() // layer.out_features)


def _attention(
    tally: _Tally, name: str, layer: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
) -> None:
    given = [*args[:3], *(kwargs[key] for key in ("query", "key", "value")[len(args) :])]
    tokens = [t.numel() // t.shape[-1] for t in given]
    for i, part in enumerate("qkv"):
        if layer.in_proj_weight is not None:
            tally.use(name, "in_proj_weight", tokens[i], (i * layer.embed_dim, (i + 1) * layer.embed_dim))
        else:
            tally.use(name, f"{part}_proj_weight", tokens[i])
    # out_proj is called as a function, so a hook of its own would see nothing.
    tally.use(_join(name, "out_proj"), "weight", tokens[0])
    keys = tokens[1] + int(layer.bias_k is not None) + int(layer.add_zero_attn)
    tally.products[name] += 2 * tokens[0] * keys * layer.embed_dim


def _opened_attention(
    tally: _Tally, name: str, layer: Attention, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
) -> None:
    """Heads of their own widths; the output projection is a module that is called, and counts itself."""
    given = [*args[:3], *(kwargs[key] for key in ("query", "key", "value")[len(args) :])]
    tokens = [t.numel() // t.shape[-1] for t in given]
    rows, values = layer.num_heads * layer.head_dim, layer.num_heads * layer.v_head_dim
    for i, (part, start, stop) in enumerate(
        (("q", 0, rows), ("k", rows, 2 * rows), ("v", 2 * rows, 2 * rows + values))
    ):
        if layer.in_proj_weight is not None:
            tally.use(name, "in_proj_weight", tokens[i], (start, stop))
        else:
            tally.use(name, f"{part}_proj_weight", tokens[i])
    keys = tokens[1] + int(layer.bias_k is not None) + int(layer.add_zero_attn)
    tally.products[name] += tokens[0] * keys * (rows + values)


_RULES: tuple[tuple[tuple[type[nn.Module], ...], _Rule], ...] = (
    (_CONVOLUTIONS, _conv),
    (_TRANSPOSED, _conv_transpose),
    ((nn.Linear,), _linear),
    ((nn.MultiheadAttention,), _attention),
    ((Attention,), _opened_attention),
)
"""The layers that are counted. Adding one: a function that adds its uses, and a line here."""

_FREE = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)
"""Modules that may own a matrix and whose multiply-adds are zero by the convention."""


def _shrinkbench_conv(
    tally: _Tally, name: str, layer: nn.Conv2d, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
) -> None:
    _once(tally, name)
    if any(d > 1 for d in layer.dilation):
        raise ValueError(f"compat='shrinkbench' cannot count {name!r}: ShrinkBench asserts dilation 1; use compat=None")
    height, width = (math.ceil(size / s) for size, s in zip(args[0].shape[-2:], layer.stride, strict=True))
    # It multiplies by all input channels; the grouped weight is that many times smaller.
    tally.use(name, "weight", height * width * layer.groups)


def _shrinkbench_linear(
    tally: _Tally, name: str, layer: nn.Linear, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
) -> None:
    _once(tally, name)
    tally.use(name, "weight", 1)


def _once(tally: _Tally, name: str) -> None:
    if name in tally.weights:
        raise ValueError(
            f"compat='shrinkbench' cannot count {name!r}: called twice, which ShrinkBench refuses; use compat=None"
        )


def _rule(module: nn.Module, compat: Compat) -> _Rule | None:
    if compat == "shrinkbench":  # by exact class, as there: a subclass is not counted
        return {nn.Conv2d: _shrinkbench_conv, nn.Linear: _shrinkbench_linear}.get(type(module))
    return next((rule for kinds, rule in _RULES if isinstance(module, kinds)), None)


def count_uses(model: nn.Module, example_inputs: Any, *, compat: Compat = None) -> Uses:
    """Run one sample through the model, by shapes only where its forward allows that, and count.

    Args:
        model: any module. A forward that needs values (``.item()``, native code) is run for real instead,
            which gives the same count and costs one forward.
        example_inputs: a tensor, a tuple of tensors or a mapping of keyword arguments, batch on axis 0;
            the first sample is counted.
        compat: ``"shrinkbench"`` counts as ShrinkBench does.

    Returns:
        Uses per module; a module that is called several times counts every call.

    Raises:
        ValueError: for an unknown ``compat``, where ShrinkBench would fail an assertion, and for a model that runs on
            the whole batch but not on one sample.

    Example:
        >>> count_uses(nn.Conv2d(1, 2, 3), torch.zeros(8, 1, 5, 5)).weights
        {'': (Use(parameter='weight', times=9, rows=None),)}
    """
    if compat not in (None, "shrinkbench"):
        raise ValueError(f"compat={compat!r}: None (correct counts) or 'shrinkbench' is allowed")
    root = unwrap(model)
    sample = first_sample(example_inputs)
    try:
        with torch.device("meta"):  # tensors made inside forward follow
            tally = _run(_on_meta(root), _on_meta(sample), compat)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, AssertionError):
        # A forward that reads values cannot run on shapes. The real run counts the same, or raises what is wrong.
        try:
            tally = _run(root, sample, compat)
        except RuntimeError as error:
            _say_whether_the_batch_is_fixed(root, example_inputs, error)
            raise
    weights = {name: tuple(uses) for name, uses in tally.weights.items()}
    return Uses(weights, dict(tally.products), _uncounted(root, compat))


def _say_whether_the_batch_is_fixed(root: nn.Module, example_inputs: Any, error: RuntimeError) -> None:
    """One sample failed: where the whole batch runs, its size is written into the forward."""
    whole = tuple(example_inputs) if isinstance(example_inputs, list) else example_inputs
    try:
        with quiet(root):
            _call(root, whole)
    except RuntimeError:
        return
    raise ValueError(
        f"{type(root).__name__} runs on all of example_inputs but not on the first sample, for which multiply-adds are "
        f"counted: a batch size seems fixed in its forward (say x.shape[0] or -1 in view and reshape). torch: {error}"
    ) from error


def _call(root: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        root(**cast("dict[str, Any]", inputs))
    else:
        root(*(cast("tuple[Any, ...]", inputs) if isinstance(inputs, tuple) else (inputs,)))


def first_sample(example_inputs: Any) -> Any:
    """The first sample of a batch: ``[:1]`` of every tensor, inside tuples, lists and mappings."""
    if isinstance(example_inputs, Tensor):
        return example_inputs[:1] if example_inputs.ndim else example_inputs
    if isinstance(example_inputs, (tuple, list)):
        return tuple(first_sample(item) for item in cast("tuple[Any, ...]", example_inputs))
    if isinstance(example_inputs, Mapping):
        return {key: first_sample(item) for key, item in cast("Mapping[str, Any]", example_inputs).items()}
    return example_inputs


def _on_meta(value: Any) -> Any:
    """A structural copy whose tensors have shapes and no values; nothing that forward caches reaches the original."""
    memo: dict[int, Any] = {}
    if isinstance(value, nn.Module):
        for parameter in value.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        for buffer in value.buffers():
            memo[id(buffer)] = buffer.detach().to("meta")
        return copy.deepcopy(value, memo)
    if isinstance(value, Tensor):
        return value.detach().to("meta")
    if isinstance(value, tuple):
        return tuple(_on_meta(item) for item in cast("tuple[Any, ...]", value))
    if isinstance(value, dict):
        return {key: _on_meta(item) for key, item in cast("dict[str, Any]", value).items()}
    return value


def _run(root: nn.Module, sample: Any, compat: Compat) -> _Tally:
    tally = _Tally()
    handles: list[Any] = []
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for raw, module in root.named_modules():
            if (rule := _rule(module, compat)) is not None:
                handles.append(module.register_forward_hook(_hook(tally, rule, clean_name(raw)), with_kwargs=True))
        # The fused encoder layer would call none of its linear modules.
        torch.backends.mha.set_fastpath_enabled(False)
        with quiet(root):
            _call(root, sample)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    return tally


def _hook(tally: _Tally, rule: _Rule, name: str) -> Callable[[Any, Any, Any, Any], None]:
    def hook(layer: Any, args: Any, kwargs: Any, out: Any) -> None:
        rule(tally, name, layer, args, kwargs, out)

    return hook


def _uncounted(root: nn.Module, compat: Compat) -> tuple[str, ...]:
    modules = {clean_name(raw): module for raw, module in root.named_modules()}
    attention = tuple(_join(n, "out_proj") for n, m in modules.items() if isinstance(m, nn.MultiheadAttention))
    return tuple(
        name or type(module).__name__
        for name, module in modules.items()
        if any(p.ndim >= 2 for p in module.parameters(recurse=False))
        and not isinstance(module, _FREE)
        and _rule(module, compat) is None
        and (compat is not None or name not in attention)
    )
