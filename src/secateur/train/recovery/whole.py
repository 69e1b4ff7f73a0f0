"""All or nothing for what takes long: a model that training failed on is put back as it was."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.masks import find_masks
from secateur.model.names import unwrap
from secateur.model.packed import pack_units
from secateur.model.registry import forget_masks
from secateur.model.sharding import local

__all__ = ["left_whole"]


@contextmanager
def left_whole(model: nn.Module) -> Generator[None]:
    """Inside the block the model may change; if the block fails, weights, buffers and masks are put back.

    That holds for every exception, Ctrl-C included. Memory: one copy of the model.

    Args:
        model: any module; wrappers are looked through.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> before = net.weight.detach().clone()
        >>> try:
        ...     with left_whole(net):
        ...         _ = net.weight.data.fill_(7.0)
        ...         raise RuntimeError("out of patience")
        ... except RuntimeError:
        ...     print(torch.equal(net.weight, before))
        True
    """
    root = unwrap(model)
    masks = find_masks(root)
    state = None if masks is None else masks.state_dict()
    values = {name: local(tensor).detach().clone() for name, tensor in _tensors(root)}
    modes = {module: module.training for module in root.modules()}
    try:
        yield
    except BaseException:
        _put_back_masks(root, state)
        with torch.no_grad():
            for name, tensor in _tensors(root):
                if name in values:
                    local(tensor).copy_(values[name])
        for module, training in modes.items():
            module.training = training
        raise


def _put_back_masks(root: nn.Module, state: dict[str, Any] | None) -> None:
    """The masks as they were, values apart: those are copied afterwards."""
    masks = find_masks(root)
    if masks is None:
        return
    masks.detach()
    if state is None:
        forget_masks(root)
        return
    # Parameters that came under masks inside the block cannot be taken out again; they are all kept, which is the same.
    new = {name: torch.ones_like(mask) for name, mask in masks.unit_masks.items() if name not in state["units"]}
    masks.update(new)
    masks.load_state_dict({**state, "units": {**state["units"], **pack_units(new)}})


def _tensors(root: nn.Module) -> list[tuple[str, Tensor]]:
    return [*root.named_parameters(), *root.named_buffers()]
