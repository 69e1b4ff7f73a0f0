"""What a run is about, as plain JSON: two runs share a folder only if all of it is equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset, TensorDataset

from secateur.train.compress.candidates import Family
from secateur.train.compress.goal import Goal
from secateur.train.compress.setting import Setting
from secateur.train.loop.named_functions import function_text

__all__ = ["data_text", "identity_of", "key_of", "model_digest", "same_data"]


def identity_of(
    setting: Setting, goal: Goal, families: Sequence[Family], metric: Any, example_inputs: Any = None
) -> dict[str, Any]:
    """Everything that a figure of the run depends on.

    Args:
        setting: of the run.
        goal: what was asked.
        families: what is tried.
        metric: the user's, or None.
        example_inputs: the user's, or None.

    Returns:
        Name -> plain JSON.
    """
    return {
        "model": model_digest(setting.dense),
        "goal": goal.given,
        "families": {family.name: family.describe() for family in families},
        "recovery": setting.recovery.describe(),
        "train": data_text(setting.train),
        "valid": data_text(setting.valid),
        "test": data_text(setting.test),
        "metric": "accuracy" if metric is None else f"{metric.__module__}:{getattr(metric, '__qualname__', metric)}",
        "batch": setting.batch,
        "seed": setting.seed,
        "init": _init_text(setting),
        "example_inputs": None if example_inputs is None else _values_text(example_inputs),
    }


def key_of(family: Family, sparsities: Sequence[float]) -> str:
    """Twelve hexadecimal digits that name a candidate of a run.

    Args:
        family: whose stages it went through.
        sparsities: of each stage.

    Example:
        >>> from secateur.train.compress.stage import Stage
        >>> weights = Family("weights", (Stage(),))
        >>> key_of(weights, (0.5,)) != key_of(weights, (0.6,))
        True
    """
    text = json.dumps([family.describe(), list(sparsities)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def model_digest(model: nn.Module) -> str:
    """Twelve hexadecimal digits of a model's modules, names, shapes and values.

    Args:
        model: any module.

    Example:
        >>> model_digest(nn.Flatten()) == model_digest(nn.Flatten()) != model_digest(nn.ReLU())
        True
    """
    found = hashlib.sha256(" ".join(type(module).__qualname__ for module in model.modules()).encode())
    for name, tensor in model.state_dict().items():
        found.update(name.encode() + _digest(tensor) if isinstance(tensor, Tensor) else name.encode())
    return found.hexdigest()[:12]


def data_text(data: Any) -> str | None:
    """What can be said of data without reading a loader: tensors by their values, loaders by type, lengths and tensors.

    Args:
        data: as the user gave it.

    Example:
        >>> data_text([1, 2, 3])
        'list of 3'
        >>> data_text([torch.zeros(2)]) == data_text([torch.zeros(2)]) != data_text([torch.ones(2)])
        True
    """
    if data is None:
        return None
    kind = type(data).__name__
    if isinstance(data, (tuple, list)) and all(isinstance(item, Tensor) for item in cast("list[Any]", data)):
        items = cast("list[Tensor]", data)
        return ", ".join(f"{tuple(item.shape)} {_digest(item).hex()[:12]}" for item in items)
    if isinstance(data, Mapping):
        return f"mapping of {sorted(cast('Mapping[str, Any]', data))}{_values_text(data)}"
    whole = cast("Any", data)
    samples = getattr(whole, "dataset", whole)
    told = f"{kind} of {len(samples) if hasattr(samples, '__len__') else 'unknown length'}"
    size = getattr(whole, "batch_size", None)
    return told + ("" if size is None else f" by {size}") + _values_text(samples)


def same_data(one: Any, other: Any) -> bool:
    """Whether two data sets are seen to be the same: one object, equal tensors, or loaders of all of one data set.

    Of pairs ``(x, y)`` the inputs count. What cannot be seen without reading a loader is taken to differ.

    Args:
        one: as the user gave it.
        other: likewise.

    Example:
        >>> x, y = torch.eye(2), torch.arange(2)
        >>> same_data((x, y), (x.clone(), y)), same_data((x, y), (x + 1, y)), same_data(None, None)
        (True, False, False)
    """
    if one is None or other is None or type(one) is not type(other):
        return False
    if one is other:
        return True
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, Mapping):
        first, second = cast("Mapping[Any, Any]", one), cast("Mapping[Any, Any]", other)
        return bool(first) and first.keys() == second.keys() and all(same_data(first[k], second[k]) for k in first)
    if isinstance(one, (tuple, list)):
        items = list(zip(cast("list[Any]", one), cast("list[Any]", other), strict=False))
        if len(one) == len(other) == 2 and isinstance(one[0], Tensor):  # pyright: ignore[reportUnknownArgumentType]
            return same_data(*items[0])
        return len(one) == len(other) == len(items) > 0 and all(same_data(*each) for each in items)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(one, TensorDataset):
        return same_data(one.tensors, other.tensors)
    if isinstance(one, Subset):
        return list(one.indices) == list(other.indices) and same_data(cast("Any", one).dataset, other.dataset)
    if isinstance(one, DataLoader):
        return _reads_all(one) and _reads_all(other) and same_data(cast("Any", one).dataset, other.dataset)
    return False


def _reads_all(loader: Any) -> bool:
    """Whether every sample comes once: samplers of the user's own may share a data set out."""
    sampler = loader.sampler if loader.batch_size is not None else None
    whole = isinstance(sampler, SequentialSampler) or (isinstance(sampler, RandomSampler) and not sampler.replacement)
    return whole and sampler is not None and len(sampler) == len(loader.dataset)


def _values_text(value: Any) -> str:
    """The tensors in something as digits; empty where there are none to be seen."""
    found = list(_tensors(value))
    if not found:
        return ""
    return f" {hashlib.sha256(b''.join(map(_digest, found))).hexdigest()[:12]}"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key in cast("Mapping[Any, Any]", value):
            yield from _tensors(value[key])
    elif isinstance(value, (tuple, list)):
        for each in cast("list[Any]", value):
            yield from _tensors(each)
    elif isinstance(value, TensorDataset):
        yield from value.tensors
    elif isinstance(value, Subset):
        yield torch.as_tensor(list(value.indices))
        yield from _tensors(cast("Any", value).dataset)


def _init_text(setting: Setting) -> str | None:
    if setting.fresh_state is not None:
        return f"state dict{_values_text(setting.fresh_state)}"
    made = setting.initialise
    if made is None:
        return None
    code = getattr(made, "__code__", None)  # tells two lambdas of one place apart
    return function_text(made) + ("" if code is None else f" {hashlib.sha256(code.co_code).hexdigest()[:12]}")


def _digest(tensor: Tensor) -> bytes:
    shown = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(shown + values.numpy().tobytes()).digest()
