"""Physical removal: a smaller plain module that computes what the masked one computed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.core.unit_channel import Channel
from secateur.model.graph.cutting import Keep
from secateur.model.graph.examples import as_examples
from secateur.model.graph.group import Groups
from secateur.model.graph.groups import find_groups
from secateur.model.graph.probe import Probes
from secateur.model.graph.solve import Freedom
from secateur.model.graph.verify import work_out
from secateur.model.masks import Masks, find_masks
from secateur.model.names import unwrap
from secateur.model.registry import forget_masks
from secateur.model.removal import Removal, remove, sliced_state, tensor_shapes

__all__ = ["shrink"]


def shrink(
    model: nn.Module,
    masks: Masks | None = None,
    *,
    example_inputs: Any,
    units: Mapping[str, Sequence[int]] | None = None,
    unit: Freedom = "channel",
    exact: bool = True,
    optimizer: Optimizer | None = None,
    inplace: bool = False,
) -> Any:
    """Take masked units out of a model for good.

    The plan is tried on a copy first: with what reads the units zeroed and what makes them disturbed the output must
    not move, and the smaller model must return the masked model's values and shapes at two batch sizes. If a probe
    fails, nothing of the model or the optimizer has changed.

    Args:
        model: any module; wrappers are looked through, and the result is the user's own module without them.
        masks: of unit ``channel``; None: the masks of this model.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of these.
        units: instead of masks: group name -> numbers of the units to remove, as ``sc.groups`` counts them.
        unit: the kind of unit that ``units`` names: ``"channel"``, ``"head"`` or ``"head_dim"``.
        exact: refuse what changes the values of what stays.
        optimizer: its state is sliced along.
        inplace: shrink ``model`` (and ``optimizer``) itself; False: a copy, the original stays as it is.

    Returns:
        The smaller module; with ``optimizer`` the pair of both.

    Raises:
        ValueError: if there are no masks, they are not of unit ``channel``, were trained without, or belong to other
            groups; if units are unknown; if no plan passes the probes.

    Example:
        >>> import secateur as sc
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
        >>> _ = sc.prune(net, 0.5, unit="channel", example_inputs=x)
        >>> small = shrink(net, example_inputs=x)
        >>> small[0].out_features, torch.allclose(small(x), net(x), atol=1e-6)
        (4, True)
    """
    root, examples = unwrap(model), as_examples(example_inputs)
    chosen = None if units is not None else _masks_of(root, masks)
    groups = find_groups(root, example_inputs, unit=unit, exact=exact)
    keep = _keep_units(groups, units or {}) if chosen is None else _keep_masks(groups, chosen)
    small, removal, problem = work_out(Probes(root, examples), groups, keep)
    if small is None:
        raise ValueError(f"nothing was changed: the smaller model does not pass its probes: {problem}")
    if inplace:
        _carry_out(root, removal, optimizer)
        forget_masks(root)
        return model if optimizer is None else (model, optimizer)
    if optimizer is None:
        return small
    copied, also = copy.deepcopy((root, optimizer))
    _carry_out(copied, removal, also)
    return copied, also


def _carry_out(root: nn.Module, removal: Removal, optimizer: Optimizer | None) -> None:
    """Model and optimizer, or neither."""
    state = None if optimizer is None else sliced_state(optimizer, root, removal, tensor_shapes(root))
    remove(root, removal)
    if state is not None:
        state.put()


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
        keep[name] = mask.bool()
    return keep


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
