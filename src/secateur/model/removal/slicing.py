"""Taking positions out of tensors, and whether a removal fits the tensors it names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from secateur.model.removal.plan import Removal

__all__ = ["check_removal", "check_resizable", "empty_like", "sliced"]

_UNSIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""Dtypes that torch cannot index, and one of the same width that it can."""


def sliced(tensor: Tensor, kept: Mapping[int, Sequence[int]], scale: float = 1.0) -> Tensor:
    """The kept positions along each axis, times ``scale``, in new memory of the same order of axes.

    Example:
        >>> sliced(torch.arange(6).view(2, 3), {1: (2, 0)})
        tensor([[2, 0],
                [5, 3]])
    """
    raw = tensor.detach()
    found = raw.view(_UNSIGNED[tensor.dtype]) if tensor.dtype in _UNSIGNED else raw
    for dim, positions in kept.items():
        found = found.index_select(dim, torch.tensor(positions, dtype=torch.int64, device=tensor.device))
    found = found.view(tensor.dtype) if tensor.dtype in _UNSIGNED else found
    if scale != 1.0:
        found = found * scale
    if found.layout is not torch.strided:
        return found
    new = empty_like(tensor, tuple(found.shape))
    if new.stride() == found.stride() and found.data_ptr() != raw.data_ptr():
        return found
    return new.copy_(found)


def empty_like(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uninitialised memory of another shape whose axes lie in memory as those of ``tensor`` do (channels last).

    Example:
        >>> weight = torch.zeros(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        >>> empty_like(weight, (2, 3, 2, 2)).stride()
        (12, 1, 6, 3)
    """
    order = sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim))
    packed = torch.empty([shape[dim] for dim in order], dtype=tensor.dtype, device=tensor.device)
    return packed.permute([order.index(dim) for dim in range(tensor.dim())])


def check_removal(removal: Removal, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """Refuse what names no tensor, no axis or no position.

    Args:
        removal: the plan.
        tensors: first name -> tensor, of the model as it is.
        aliases: any other name -> first name.

    Raises:
        ValueError: naming the tensor, what is wrong with it, and what is allowed.
    """
    for name in [*removal.kept, *removal.scales]:
        if name in aliases:
            raise ValueError(f"the removal names {name!r}, which is tied to {aliases[name]!r}; use that name")
        if name not in tensors:
            raise ValueError(f"the removal names {name!r}, which is no parameter or buffer of the model")
        check_resizable(name, tensors[name])
    good: dict[tuple[int, int], Sequence[int]] = {}  # of a group, most axes keep the same positions
    for name, (old, new) in removal.shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}).items():
        for dim, positions in removal.kept[name].items():
            if (id(positions), old[dim]) in good:
                continue
            where = f"axis {dim} of {name!r} ({old[dim]} positions)"
            if new[dim] == 0:
                raise ValueError(f"{where}: nothing would be left; keep at least one position")
            if any(type(position) is not int for position in positions):
                raise ValueError(f"{where}: positions are integers, these are {positions[:3]}...")
            if min(positions) < 0 or max(positions) >= old[dim]:
                wrong = min(positions) if min(positions) < 0 else max(positions)
                raise ValueError(f"{where}: there is no position {wrong}")
            if len(set(positions)) != len(positions):
                raise ValueError(f"{where}: a position is kept twice")
            good[id(positions), old[dim]] = positions
    for name, factor in removal.scales.items():
        if not (math.isfinite(factor) and factor != 0.0 and tensors[name].dtype.is_floating_point):
            raise ValueError(
                f"scale {factor!r} of {name!r} ({tensors[name].dtype}): a finite factor other than 0, of a float tensor"
            )


def check_resizable(name: str, tensor: Tensor) -> None:
    """Refuse tensors whose data cannot be exchanged for another shape.

    Raises:
        ValueError: naming the tensor and what to do first.
    """
    if is_lazy(tensor):
        raise ValueError(f"{name} has no shape yet; run the model once before its shape can change")
    if hasattr(tensor, "full_tensor"):
        raise ValueError(f"{name} is sharded; remove from the model before it is sharded")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise ValueError(f"{name} has layout {tensor.layout}, dtype {tensor.dtype}; only plain tensors can be sliced")
    if tensor.is_inference():
        raise ValueError(f"{name} was made in inference mode; build the model outside of it")
