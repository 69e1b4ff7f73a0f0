"""From kept units to a removal, and to the masked model that it has to compute the same as."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.model.graph.group import Group
from secateur.model.graph.trace import tensor_names
from secateur.model.graph.twins import copied, twin
from secateur.model.removal import Removal

__all__ = ["Keep", "Masked", "disturbed_copy", "kept_positions", "masked_copy", "removal_of", "slices"]

Keep = Mapping[str, Tensor]
"""Group -> bool mask of its units, True: stays."""


def slices(
    group: Group, gone: Tensor
) -> Iterable[tuple[str, int, Tensor, Literal["out", "in", "follows", "direction"]]]:
    """The slices of some units: tensor, axis, positions, part."""
    found: dict[int, Tensor] = {}  # most members have the same owners
    for member, owner in zip(group.members, group.owners, strict=True):
        positions = found.get(id(owner))
        if positions is None:
            positions = found[id(owner)] = torch.nonzero((owner >= 0) & gone[owner.clamp(min=0)]).reshape(-1)
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
    known: dict[bytes, tuple[int, ...]] = {}  # of equal ones there is one: they are looked at and sliced by often

    def left(gone: Tensor) -> tuple[int, ...]:
        key = gone.numpy().tobytes()
        if key not in known:
            known[key] = tuple(torch.nonzero(~gone).reshape(-1).tolist())
        return known[key]

    return {tensor: {dim: left(gone) for dim, gone in axes.items()} for tensor, axes in lost.items()}


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


@dataclass(frozen=True)
class Masked:
    """A copy of a model in which units are silent.

    Attributes:
        model: the copy.
        changed: its parameters that do not hold what the model's hold; they have memory of their own.
    """

    model: nn.Module
    changed: frozenset[str]


def masked_copy(root: nn.Module, groups: Mapping[str, Group], keep: Keep, *, shared: bool = False) -> Masked:
    """A copy of the model in which every slice of the removed units is zero.

    Args:
        root: the model.
        groups: by name.
        keep: the units that stay.
        shared: what does not change lies in the memory of the model.
    """
    masked = twin(root) if shared else copied(root)
    tensors, changed = tensor_names(masked), set[str]()
    with torch.no_grad():
        for name, mask in keep.items():
            for tensor, dim, positions, part in slices(groups[name], ~mask):
                if part == "direction" or not isinstance(tensors[tensor], nn.Parameter):
                    continue
                where = positions.to(tensors[tensor].device)
                if tensor in changed or _any(tensors[tensor], dim, where):
                    if shared and tensor not in changed:
                        tensors[tensor].data = tensors[tensor].data.clone()
                    changed.add(tensor)
                    tensors[tensor].index_fill_(dim, where, 0.0)
    return Masked(masked, frozenset(changed))


def disturbed_copy(
    root: nn.Module, masked: Masked, groups: Mapping[str, Group], asked: Keep, *, shared: bool = False
) -> nn.Module | None:
    """The masked model, but what makes and follows the units is there again, and half as large again.

    Args:
        root: the model.
        masked: of it; of no use afterwards, its memory is written.
        groups: by name.
        asked: the units that stay, of the groups that are to be disturbed.
        shared: as of ``masked_copy``.

    Returns:
        The copy; None where it would not differ from the masked model.
    """
    noisy, source = twin(root) if shared else copied(root), tensor_names(root)
    tensors, silent, differs = tensor_names(noisy), tensor_names(masked.model), False
    for name in masked.changed:
        tensors[name].data = silent[name].data
    with torch.no_grad():
        for name, mask in asked.items():
            for tensor, dim, positions, part in slices(groups[name], ~mask):
                parameter = tensor in masked.changed
                if part not in ("out", "follows") or not (parameter or (part == "out" and _is_buffer(tensors[tensor]))):
                    continue
                where = positions.to(tensors[tensor].device)
                values = source[tensor].index_select(dim, where)
                if part == "out" and values.is_floating_point():
                    values = values * 1.5
                differs |= bool(values.any())
                tensors[tensor].index_copy_(dim, where, values)
    return noisy if differs else None


def _any(tensor: Tensor, dim: int, positions: Tensor) -> bool:
    """Whether any of these slices is other than zero."""
    return bool(tensor.index_select(dim, positions).any())


def _is_buffer(tensor: Tensor) -> bool:
    return not isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
