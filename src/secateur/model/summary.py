"""What ``print(masks)`` says: shares, and what they are worth before anything else is done."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from secateur.core.canonical import to_grouped
from secateur.model.names import parameters_by_name, unwrap
from secateur.records import Shares
from secateur.text import data_size

if TYPE_CHECKING:
    from secateur.model.masks import Masks

__all__ = ["file_bytes_estimate", "shares_of", "summary"]

_ROWS = 40


def shares_of(masks: Masks) -> Shares:
    """The three sparsities: of units, of target weights, of all parameters."""
    units = sum(map(math.prod, masks.unit_masks.shapes.values()))
    kept_units = sum(masks.unit_masks.count(key) for key in masks.unit_masks)
    weights = sum(math.prod(key.shape) for key in masks.parameters.values())
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
        sparse -= (math.prod(masks.parameters[name].shape) - masks.kept(name)) * parameter.element_size()
    for key, shape in masks.unit_masks.shapes.items():
        sparse += _mask_bytes(math.prod(shape), masks.unit_masks.count(key))
    return dense, sparse


def summary(masks: Masks) -> str:
    """One sentence, then one line per parameter, or per coupled group."""
    shares = masks.shares()
    dense, sparse = file_bytes_estimate(masks)
    lines = [
        f"{100 * shares.target_weights:.1f} % zeros in {len(masks)} tensors{_of_groups(masks)} "
        f"({100 * shares.all_parameters:.1f} % of all "
        f"parameters; unit {masks.unit.spec}, {100 * shares.units:.1f} % removed); not faster by itself, a masked "
        f"weight is a stored zero; file {data_size(dense)} -> about {data_size(sparse)} with sc.save"
    ]
    width = max(len(key) for key in masks.layout)
    for key in list(masks.layout)[:_ROWS]:
        kept, total, what = _counts(masks, key)
        cut_off = _without_inputs(masks, key)
        lines.append(f"  {key:{width}}  {100 * (1 - kept / total):5.1f} %  {kept:>10,} of {total:,} {what}{cut_off}")
    if len(masks.layout) > _ROWS:
        lines.append(f"  ... and {len(masks.layout) - _ROWS} more")
    return "\n".join(lines)


def _counts(masks: Masks, key: str) -> tuple[int, int, str]:
    """Kept and all, of the weights of a parameter or of the units of a group, and what they are."""
    layout = masks.layout[key]
    if layout.kind != "group":
        return masks.kept(key), math.prod(layout.shape), "kept"
    tensors = len({member.name for member in layout.members})
    return masks.unit_masks.count(key), layout.shape[0], f"channels kept, slices of {tensors} tensors"


def _without_inputs(masks: Masks, key: str) -> str:
    """How many outputs of a layer lost all their weights though no unit is an output: only their bias is left."""
    layout = masks.layout[key]
    if layout.kind in ("group", "embedding") or masks.unit.spec in ("filter", "layer") or len(layout.shape) < 2:
        return ""
    inputs = to_grouped(masks[key], layout).flatten(2).any(2)
    dead, outputs = inputs.numel() - int(torch.count_nonzero(inputs)), inputs.numel()
    if not dead:
        return ""
    return (
        "; no output has inputs: the layer passes nothing on"
        if dead == outputs
        else (f"; {dead:,} of {outputs:,} outputs without inputs")
    )


def _of_groups(masks: Masks) -> str:
    groups = sum(key.kind == "group" for key in masks.layout.values())
    return f" of {groups} coupled group{'s' if groups > 1 else ''}" if groups else ""


def _mask_bytes(units: int, kept: int) -> int:
    """Bits, or Rice-coded gaps between the rarer side's positions: k + 1 + E[gap >> k] bits each, gaps geometric."""
    bits, listed = -(-units // 8), min(kept, units - kept)
    if listed == 0:
        return min(bits, 1)
    zero = 1 - listed / units
    each = min(k + 1 + zero ** (1 << k) / (1 - zero ** (1 << k)) for k in range(32))
    return min(bits, 1 + math.ceil(listed * each / 8))
