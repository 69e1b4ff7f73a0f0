"""What a run is about, as plain JSON: two runs share a folder only if all of it is equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.train.compress.candidates import Family
from secateur.train.compress.goal import Goal
from secateur.train.compress.setting import Setting

__all__ = ["data_text", "identity_of", "key_of", "model_digest"]


def identity_of(setting: Setting, goal: Goal, families: Sequence[Family], metric: Any) -> dict[str, Any]:
    """Everything that a figure of the run depends on.

    Args:
        setting: of the run.
        goal: what was asked.
        families: what is tried.
        metric: the user's, or None.

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
    """What can be said of data without reading it all: tensors by their values, loaders by type and length.

    Args:
        data: as the user gave it.

    Example:
        >>> data_text([1, 2, 3])
        'list of 3'
    """
    if data is None:
        return None
    kind = type(data).__name__
    if isinstance(data, (tuple, list)) and all(isinstance(item, Tensor) for item in cast("list[Any]", data)):
        items = cast("list[Tensor]", data)
        return ", ".join(f"{tuple(item.shape)} {_digest(item).hex()[:12]}" for item in items)
    if isinstance(data, Mapping):
        return f"mapping of {sorted(cast('Mapping[str, Any]', data))}"
    whole = cast("Any", data)
    samples = getattr(whole, "dataset", whole)
    return f"{kind} of {len(samples) if hasattr(samples, '__len__') else 'unknown length'}"


def _digest(tensor: Tensor) -> bytes:
    shown = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(shown + values.numpy().tobytes()).digest()
