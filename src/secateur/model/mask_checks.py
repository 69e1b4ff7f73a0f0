"""What masks must satisfy before they are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.core.bit_masks import BitMasks
from secateur.model.names import canonical_names, unwrap
from secateur.model.registry import find_masks
from secateur.model.sharding import local, part_of, take
from secateur.types import KeyLayout, Layout, Unit

__all__ = ["check_members", "check_shapes", "check_zeros", "untie", "zeros_without_masks"]


def untie(root: nn.Module, unit_masks: Mapping[str, Tensor], layout: Layout) -> tuple[BitMasks, dict[str, KeyLayout]]:
    """Masks, packed, and layouts under the first name of each parameter; tied names must agree.

    Coupled groups keep their names, their members come under the first names of their parameters.
    """
    first = canonical_names(root)
    if any(key in layout and layout[key].kind == "group" for key in unit_masks):
        return _untie_groups(root, unit_masks, {key: layout[key] for key in unit_masks}, first)
    masks = BitMasks()
    layouts: dict[str, KeyLayout] = {}
    given: dict[str, str] = {}
    for name in unit_masks:
        if name not in first:
            raise ValueError(f"mask for {name!r}: {type(root).__name__} has no such parameter; it has {list(first)}")
        key, one = first[name], BitMasks([(first[name], unit_masks[name].cpu())])
        if key in masks and not torch.equal(masks[key], one[key]):
            raise ValueError(
                f"{given[key]!r} and {name!r} are the same tensor (tied) but come with different masks; give one mask"
            )
        masks = masks.replaced(one)
        layouts[key] = layout[name]
        given[key] = name
    return masks, layouts


def _untie_groups(
    root: nn.Module, unit_masks: Mapping[str, Tensor], layout: Layout, first: Mapping[str, str]
) -> tuple[BitMasks, dict[str, KeyLayout]]:
    for group, key in layout.items():
        for member in key.members:
            if member.name not in first:
                raise ValueError(
                    f"group {group!r} has the member {member.name!r}, and {type(root).__name__} has no such parameter; "
                    f"it has {list(first)}"
                )
    layouts = {
        group: replace(key, members=tuple(replace(member, name=first[member.name]) for member in key.members))
        for group, key in layout.items()
    }
    return BitMasks((group, mask.cpu()) for group, mask in unit_masks.items()), layouts


def check_shapes(unit_masks: Mapping[str, Tensor], unit: Unit, layout: Layout) -> None:
    """Refuse masks of unknown names or of the wrong grid.

    Raises:
        ValueError: with the name, the shape given and the shape needed.
    """
    packed = isinstance(unit_masks, BitMasks)
    for name in unit_masks:
        if name not in layout:
            raise ValueError(f"mask for {name!r}: these masks are of {list(layout)}")
        shape = unit_masks.shapes[name] if packed else tuple(unit_masks[name].shape)
        if shape != unit.grid(layout[name]):
            what = "group of units" if layout[name].kind == "group" else "parameter of shape"
            raise ValueError(
                f"mask for {name!r} has shape {shape}; unit {unit.spec!r} of a {what} "
                f"{layout[name].shape} needs {unit.grid(layout[name])}"
            )


def check_members(layout: Layout, known: Layout) -> None:
    """Refuse a coupled group that has other members than the group of the same name.

    Raises:
        ValueError: naming the group.
    """
    for group, key in layout.items():
        if group in known and key.members != known[group].members:
            raise ValueError(
                f"group {group!r} couples other slices than when its masks were made: the model, or what the example "
                "inputs reach in it, has changed. Call masks.undo() and prune again"
            )


def check_zeros(name: str, parameter: Tensor, mask: Tensor) -> None:
    """Make sure that the removed weights of a parameter are still zero.

    Raises:
        ValueError: if some have grown back, with how many.
    """
    values = local(parameter).detach()
    regrown = int(((values != 0) & ~take(mask, part_of(parameter)).to(values.device)).sum())
    if regrown:
        raise ValueError(
            f"{regrown} removed weights of {name!r} are no longer zero: the model was trained or loaded "
            "without its masks. Train with masks.attach(optimizer), or call masks.apply() to remove them again"
        )


def zeros_without_masks(model: nn.Module) -> str | None:
    """What to say about a model that looks pruned but has no masks; None where there is nothing to say.

    Half or more zeros in the weights of a model are no accident: it is a copy of a pruned one, most likely.
    """
    root = unwrap(model)
    weights = [parameter.detach() for parameter in root.parameters() if parameter.dim() > 1]
    total = sum(weight.numel() for weight in weights)
    zeros = total - sum(int(torch.count_nonzero(weight)) for weight in weights)
    if find_masks(root) is not None or total == 0 or 2 * zeros < total:
        return None
    return (
        f"{100 * zeros / total:.0f} % of the weights are zero, but this model has no masks (a deepcopy has none), "
        "so they count as kept: give masks=, or prune the copy"
    )
