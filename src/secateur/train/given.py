"""What is gone before a budget asks for more: masked units, or those that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from secateur.core.unit_channel import Channel
from secateur.model.graph.cutting import Keep
from secateur.model.graph.group import Group, Groups
from secateur.model.masks import Masks, find_masks
from secateur.train.budget import Budget
from secateur.types import KeyLayout

__all__ = ["start_of"]


def start_of(
    root: nn.Module, groups: Groups, masks: Masks | None, units: Mapping[str, Sequence[int]] | None, budget: Budget
) -> Keep:
    """The units that stay before a budget asks for less.

    Args:
        root: the dense model.
        groups: its groups.
        masks: of the model; None: those it has.
        units: group name -> numbers of the units that go, instead of masks.
        budget: with one, nothing needs to be gone.

    Returns:
        For each group that loses something which of its units stay.

    Raises:
        ValueError: if there is nothing to go by, or it does not belong to these groups.
    """
    if units is not None:
        return _keep_units(groups, units)
    if masks is None and budget.given and find_masks(root) is None:
        return {}
    return _keep_masks(groups, _masks_of(root, masks))


def _masks_of(root: nn.Module, masks: Masks | None) -> Masks:
    found = masks if masks is not None else find_masks(root)
    if found is None:
        raise ValueError(
            "this model has no masks: call sc.prune(model, ..., unit='channel', example_inputs=) first, name units=, "
            "or give a budget"
        )
    if not isinstance(found.unit, Channel):
        raise ValueError(
            f"these masks are of unit {found.unit.spec!r}, whose zeros are not whole channels of a coupled group: "
            "prune with unit='channel', or ask for zeros with from_zeros=True"
        )
    if found.model is not root:
        raise ValueError("these masks belong to another model")
    found.check()
    return found


def _keep_masks(groups: Groups, masks: Masks) -> Keep:
    keep: dict[str, Tensor] = {}
    for name, mask in masks.unit_masks.items():
        if name not in groups or groups[name].units != mask.numel():
            raise ValueError(
                f"the masks know a group {name!r} of {mask.numel()} units, but a trace on these example inputs does "
                f"not find it; it finds {list(groups)[:8]}. Give the example inputs that the model was pruned with"
            )
        if not _the_same(groups[name], masks.layout[name]):
            raise ValueError(
                f"the masks of group {name!r} are of other slices than a trace on these example inputs finds: the "
                "model runs another way than when it was pruned. Run it as then, or prune it again"
            )
        keep[name] = mask.bool()
    return keep


def _the_same(group: Group, masked: KeyLayout) -> bool:
    """Whether a group is the one that masks zeroed, slice by slice; those know its parameters alone."""
    zeroed = {(member.name, member.dim): member.owner for member in masked.members}
    names = {name for name, _ in zeroed}
    found = {(member.name, member.dim): member.owner for member in group.members if member.name in names}
    return zeroed == found


def _keep_units(groups: Groups, units: Mapping[str, Sequence[int]]) -> Keep:
    keep: dict[str, Tensor] = {}
    for name, numbers in units.items():
        if name not in groups:
            why = next((reason for axis, reason in groups.frozen.items() if axis.startswith(f"{name} ")), None)
            raise ValueError(
                f"units={{{name!r}: ...}}: "
                + (f"nothing can be removed there: {why}" if why else f"there are only the groups {list(groups)[:12]}")
            )
        count = groups[name].units
        mask = torch.ones(count, dtype=torch.bool)
        for number in numbers:
            if type(number) is not int or not 0 <= number < count:
                raise ValueError(f"units[{name!r}] names unit {number!r}: it has units 0 to {count - 1}")
            mask[number] = False
        if not bool(mask.any()):
            raise ValueError(f"units[{name!r}] names all {count} units: at least one has to stay")
        keep[name] = mask
    return keep
