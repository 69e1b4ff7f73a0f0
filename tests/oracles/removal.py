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
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Slices", "clean", "flops", "leaves", "run", "shapes", "zeroed"]

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
    copied = copy.deepcopy(model)
    parameters = {clean(name): p for name, p in copied.named_parameters(remove_duplicate=False)}
    modules = {clean(name): module for name, module in copied.named_modules()}
    with torch.no_grad():
        for name, dim, positions in dead:
            if name not in parameters:
                continue
            places = torch.tensor(positions, dtype=torch.long)
            chain = modules[name.rpartition(".")[0]]
            if isinstance(chain, parametrize.ParametrizationList):
                mask = torch.ones_like(chain())
                chain.append(_Masked(mask.index_fill_(dim, places, 0.0)))
            else:
                parameters[name].index_fill_(dim, places, 0.0)
    return copied


class _Masked(nn.Module):
    """The last step of a parametrization. (To bake it in would break the original: a copy shares its class.)"""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.get_buffer("mask")


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All tensors that the model returns."""
    with torch.no_grad():
        if isinstance(inputs, Mapping):
            return leaves(model(**inputs))
        return leaves(model(*inputs) if isinstance(inputs, tuple) else model(inputs))


def flops(model: nn.Module, inputs: Any) -> int:
    """Products and sums of one call, as torch counts them: matrix products, convolutions, attention.

    Fused encoder layers and LSTMs are no operators that it counts: they are run in parts.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            run(getattr(model, "_orig_mod", model), inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def leaves(output: Any) -> list[Tensor]:
    """The tensors of a nested output, in order."""
    if isinstance(output, Tensor):
        return [output]
    parts = list(output.values()) if isinstance(output, Mapping) else output
    return [leaf for part in parts for leaf in leaves(part)] if isinstance(parts, (list, tuple)) else []
