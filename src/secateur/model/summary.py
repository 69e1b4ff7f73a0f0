"""What ``print(masks)`` says: shares, and what they are worth before anything else is done."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from secateur.model.names import parameters_by_name, unwrap
from secateur.records import Shares
from secateur.text import data_size

if TYPE_CHECKING:
    from secateur.model.masks import Masks

__all__ = ["file_bytes_estimate", "shares_of", "summary"]

_ROWS = 40


def shares_of(masks: Masks) -> Shares:
    """The three sparsities: of units, of target weights, of all parameters."""
    units = sum(mask.numel() for mask in masks.unit_masks.values())
    kept_units = sum(int(mask.sum()) for mask in masks.unit_masks.values())
    weights = sum(math.prod(masks.layout[name].shape) for name in masks)
    removed = weights - sum(masks.kept(name) for name in masks)
    everything = sum(parameter.numel() for parameter in unwrap(masks.model).parameters())
    return Shares(1 - kept_units / units, removed / weights, removed / everything)


def file_bytes_estimate(masks: Masks) -> tuple[int, int]:
    """Bytes of the dense tensors, and of what ``sc.save`` writes for them (values plus the cheaper mask code).

    Masks count as if their units were removed at random places. The estimate leaves out the header, some
    hundred bytes per tensor.
    """
    root = unwrap(masks.model)
    dense = sum(t.numel() * t.element_size() for t in [*root.parameters(), *root.buffers()])
    sparse = dense
    parameters = parameters_by_name(root)
    for name in masks:
        parameter = parameters[name]
        total, kept = math.prod(masks.layout[name].shape), masks.kept(name)
        sparse -= (total - kept) * parameter.element_size()
        sparse += _mask_bytes(masks.unit_masks[name].numel(), int(masks.unit_masks[name].sum()))
    return dense, sparse


def summary(masks: Masks) -> str:
    """One sentence, then one line per parameter."""
    shares = masks.shares()
    dense, sparse = file_bytes_estimate(masks)
    lines = [
        f"{100 * shares.target_weights:.1f} % zeros in {len(masks)} tensors "
        f"({100 * shares.all_parameters:.1f} % of all "
        f"parameters; unit {masks.unit.spec}, {100 * shares.units:.1f} % removed); not faster by itself, a masked "
        f"weight is a stored zero; file {data_size(dense)} -> about {data_size(sparse)} with sc.save"
    ]
    width = max(len(name) for name in masks)
    for name in list(masks)[:_ROWS]:
        total, kept = math.prod(masks.layout[name].shape), masks.kept(name)
        lines.append(f"  {name:{width}}  {100 * (1 - kept / total):5.1f} %  {kept:>10,} of {total:,} kept")
    if len(masks) > _ROWS:
        lines.append(f"  ... and {len(masks) - _ROWS} more")
    return "\n".join(lines)


def _mask_bytes(units: int, kept: int) -> int:
    """Bits, or Rice-coded gaps between the rarer side's positions: k + 1 + E[gap >> k] bits each, gaps geometric."""
    bits, listed = -(-units // 8), min(kept, units - kept)
    if listed == 0:
        return min(bits, 1)
    zero = 1 - listed / units
    each = min(k + 1 + zero ** (1 << k) / (1 - zero ** (1 << k)) for k in range(32))
    return min(bits, 1 + math.ceil(listed * each / 8))
