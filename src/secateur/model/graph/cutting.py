"""From kept units to a removal, and to the masked model that it has to compute the same as."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.model.graph.group import Group
from secateur.model.graph.trace import tensor_names
from secateur.model.removal import Removal

__all__ = ["Keep", "kept_positions", "masked_copy", "removal_of", "slices"]

Keep = Mapping[str, Tensor]
"""Group -> bool mask of its units, True: stays."""


def slices(
    group: Group, gone: Tensor
) -> Iterable[tuple[str, int, Tensor, Literal["out", "in", "follows", "direction"]]]:
    """The slices of some units: tensor, axis, positions, part."""
    for member in group.members:
        owner = torch.tensor(member.owner)
        positions = torch.nonzero((owner >= 0) & gone[owner.clamp(min=0)]).reshape(-1)
        yield member.name, member.dim, positions, member.part


def kept_positions(groups: Mapping[str, Group], keep: Keep) -> dict[str, dict[int, tuple[int, ...]]]:
    """What stays of every axis that loses something."""
    lost: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name, mask in keep.items():
        if bool(mask.all()):
            continue
        sizes = {(m.name, m.dim): len(m.owner) for m in groups[name].members}
        for tensor, dim, positions, _ in slices(groups[name], ~mask):
            gone = lost[tensor].setdefault(dim, torch.zeros(sizes[tensor, dim], dtype=torch.bool))
            gone[positions] = True
    return {
        tensor: {dim: tuple(torch.nonzero(~gone).reshape(-1).tolist()) for dim, gone in axes.items()}
        for tensor, axes in lost.items()
    }


def removal_of(root: nn.Module, groups: Mapping[str, Group], keep: Keep) -> Removal:
    """The removal of the units that ``keep`` leaves out; norms over them are rescaled.

    A root mean square over ``d`` places of which ``d'`` stay keeps its values with ``gamma' = gamma sqrt(d / d')``
    and ``eps' = eps d / d'``.
    """
    kept = kept_positions(groups, keep)
    scales: dict[str, float] = {}
    attributes: dict[str, dict[str, int | tuple[int, ...] | float]] = defaultdict(dict)
    modules = dict(root.named_modules())
    for name, group in groups.items():
        if name not in keep or bool(keep[name].all()):
            continue
        for member in group.members if group.rescale else ():
            _rescale(modules, member.name, len(member.owner), kept, scales, attributes)
        for member in group.members if group.exact else ():
            _whole_groups(modules, member.name, kept, attributes)
    return Removal(kept, {name: dict(values) for name, values in attributes.items()}, scales)


def _rescale(
    modules: Mapping[str, nn.Module],
    tensor: str,
    size: int,
    kept: Mapping[str, Mapping[int, tuple[int, ...]]],
    scales: dict[str, float],
    attributes: dict[str, dict[str, int | tuple[int, ...] | float]],
) -> None:
    owner, _, leaf = tensor.rpartition(".")
    module = modules.get(owner)
    if module is None or isinstance(module, nn.LayerNorm) or leaf != "weight":
        return
    epsilon = next((name for name in ("eps", "variance_epsilon", "epsilon") if hasattr(module, name)), None)
    weight = getattr(module, leaf)
    if epsilon is None or weight.dim() != 1:
        return
    ratio = size / len(kept[tensor][0])
    given = getattr(module, epsilon)
    scales[tensor] = sqrt(ratio)
    attributes[owner][epsilon] = (torch.finfo(weight.dtype).eps if given is None else given) * ratio


def _whole_groups(
    modules: Mapping[str, nn.Module],
    tensor: str,
    kept: Mapping[str, Mapping[int, tuple[int, ...]]],
    attributes: dict[str, dict[str, int | tuple[int, ...] | float]],
) -> None:
    """A group norm that lost whole groups has fewer of them."""
    owner = tensor.rpartition(".")[0]
    module = modules.get(owner)
    if isinstance(module, nn.GroupNorm) and module.num_groups < module.num_channels:
        attributes[owner]["num_groups"] = module.num_groups * len(kept[tensor][0]) // module.num_channels


def masked_copy(
    root: nn.Module, groups: Mapping[str, Group], keep: Keep, parts: Iterable[str] = ("out", "in", "follows")
) -> nn.Module:
    """A copy of the model in which every slice of the removed units is zero."""
    copied = copy.deepcopy(root)
    tensors = tensor_names(copied)
    wanted = set(parts)
    with torch.no_grad():
        for name, mask in keep.items():
            for tensor, dim, positions, part in slices(groups[name], ~mask):
                if part in wanted and isinstance(tensors[tensor], nn.Parameter):
                    tensors[tensor].index_fill_(dim, positions.to(tensors[tensor].device), 0.0)
    return copied
