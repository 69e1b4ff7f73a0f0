"""Masks for the length of a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.model.names import canonical_names, find_parameter, unwrap
from secateur.model.sharding import local, part_of, take

__all__ = ["masked"]


@contextmanager
def masked(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Set removed weights to zero inside the block and put them back after it, come what may.

    Args:
        model: any module; wrappers are looked through.
        masks: ``Masks``, or a mapping from parameter name to bool mask of its shape (True: kept).

    Yields:
        The model.

    Raises:
        ValueError: for an unknown name or a mask of another shape; nothing is changed then.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> before = net.weight.detach().clone()
        >>> with masked(net, {"weight": torch.tensor([[True, False], [True, True]])}):
        ...     int((net.weight == 0).sum())
        1
        >>> torch.equal(net.weight, before)
        True
    """
    root = unwrap(model)
    first = canonical_names(root)
    saved: list[tuple[Tensor, Tensor, Tensor]] = []
    for name in masks:
        if name not in first:
            raise ValueError(f"mask for {name!r}: {type(root).__name__} has no such parameter; it has {list(first)}")
        parameter, mask = find_parameter(root, first[name]), masks[name]
        if mask.shape != parameter.shape:
            raise ValueError(f"mask for {name!r} has shape {tuple(mask.shape)}, the parameter {tuple(parameter.shape)}")
        values = local(parameter).detach()
        removed = ~take(mask.to(torch.bool), part_of(parameter)).to(values.device)
        saved.append((values, removed, values[removed].clone()))
    try:
        for values, removed, _ in saved:
            values[removed] = 0
        yield model
    finally:
        # All values were saved before any was zeroed: a tensor masked under two names gets the true ones twice.
        for values, removed, kept in saved:
            values[removed] = kept
