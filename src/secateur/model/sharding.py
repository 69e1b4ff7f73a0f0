"""The local part of a parameter, plain or sharded by FSDP2, and the part of a mask that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from secateur.model.ranks import ranks_of

__all__ = ["WHOLE", "Part", "full", "is_sharded", "local", "part_of", "reshard", "share_from_first_rank", "take"]

Part: TypeAlias = "tuple[tuple[int, int], ...] | None"
"""Where a local shard lies in the full tensor, (start, stop) per axis; None: the tensor is whole."""


WHOLE = frozenset({Tensor, nn.Parameter, type(None)})
"""Types that are never shards: asked for every tensor at every step, where a failing hasattr is slow."""


def take(tensor: Tensor, part: Part) -> Tensor:
    """The part of a full tensor."""
    return tensor if part is None else tensor[tuple(slice(start, stop) for start, stop in part)]


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor."""
    if type(tensor) in WHOLE:
        return False
    return hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The plain tensor that this process holds; shares memory with the parameter."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered from all processes where it is sharded (a collective call)."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def part_of(tensor: Tensor) -> Part:
    """The part of the full tensor that the local shard covers; None for a whole tensor."""
    if not is_sharded(tensor):
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape,
        tensor.device_mesh,  # type: ignore[attr-defined]
        tensor.placements,  # type: ignore[attr-defined]
    )
    return tuple((int(start), int(start + size)) for start, size in zip(offset, shape, strict=True))


def reshard(root: nn.Module) -> None:
    """Put FSDP2's shards back into their modules.

    A forward pass without backward (an evaluation) leaves the gathered copies there, and what is
    written to those is lost.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def share_from_first_rank(tensors: Mapping[str, Tensor], model: nn.Module, wrapped: nn.Module) -> Mapping[str, Tensor]:
    """The same masks on every rank: rank 0's, where the model is data-parallel or sharded.

    Args:
        tensors: bool tensors, the same names and shapes on every rank.
        model: the unwrapped module.
        wrapped: the module as the user gave it.

    Returns:
        The tensors of rank 0.
    """
    reshard(model)
    if not any(map(is_sharded, model.parameters())):
        return ranks_of(wrapped).of_first(tensors)
    shared: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        copy = tensor.to(torch.uint8).contiguous()
        torch.distributed.broadcast(copy, src=0)
        shared[name] = copy.to(torch.bool)
    return shared
