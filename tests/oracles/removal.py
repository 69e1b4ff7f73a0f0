"""What a network computes without some of its slices, found the slow way: a copy with zeros in their place.

Knows nothing of the package: names are looked up in the model itself, wrappers and parametrizations included.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Slices", "clean", "leaves", "run", "shapes", "zeroed"]

Slices = tuple[str, int, list[int]]
"""Tensor name, axis, positions along it."""


def clean(name: str) -> str:
    """A tensor's name without what ``torch.compile`` and data-parallel wrappers put before it."""
    for prefix in ("_orig_mod.", "module."):
        name = name.removeprefix(prefix)
    return name


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter and buffer by clean name, each once."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {clean(name): tuple(tensor.shape) for name, tensor in named}


def zeroed(model: nn.Module, dead: Iterable[Slices]) -> nn.Module:
    """A copy of the model with these slices of its parameters at zero; buffers stay as they are.

    Of a parametrized weight it is the weight itself that gets the zeros, whichever of its originals is named: a
    direction of zeros has no length to divide by.
    """
    copied = _plain(copy.deepcopy(model))
    parameters = {clean(name): p for name, p in copied.named_parameters(remove_duplicate=False)}
    with torch.no_grad():
        for name, dim, positions in dead:
            parameter = parameters.get(_effective(name))
            if parameter is not None:
                parameter.index_fill_(dim, torch.tensor(positions, dtype=torch.long), 0.0)
    return copied


def _plain(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return model


def _effective(name: str) -> str:
    owner, parametrized, rest = name.partition("parametrizations.")
    return owner + rest.split(".")[0] if parametrized else name


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All tensors that the model returns."""
    with torch.no_grad():
        if isinstance(inputs, Mapping):
            return leaves(model(**inputs))
        return leaves(model(*inputs) if isinstance(inputs, tuple) else model(inputs))


def leaves(output: Any) -> list[Tensor]:
    """The tensors of a nested output, in order."""
    if isinstance(output, Tensor):
        return [output]
    parts = list(output.values()) if isinstance(output, Mapping) else output
    return [leaf for part in parts for leaf in leaves(part)] if isinstance(parts, (list, tuple)) else []
