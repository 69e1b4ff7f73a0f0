"""Which coupled groups are pruned, and the layout of whatever a unit goes over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.core.unit_channel import Channel, parameter_layout
from secateur.core.units import unit_name
from secateur.model.graph.groups import find_groups
from secateur.model.names import aliases, parameters_by_name, unwrap
from secateur.model.selectors import Selector, other_parameters, refuse_half_tied, selected_by
from secateur.model.targets import find_targets, known_weights
from secateur.types import KeyLayout, Role, Unit

__all__ = ["find_layout", "select_groups"]

_LISTED = 8


def find_layout(
    model: nn.Module,
    targets: Selector | None,
    exclude: Selector | None,
    unit: Unit,
    example_inputs: Any = None,
    exact: bool = True,
) -> dict[str, KeyLayout]:
    """The layout that a unit goes over: of parameters, or of coupled groups.

    Args:
        model: any module; wrappers are looked through.
        targets: what to prune; None: the default targets, or all groups.
        exclude: what of that to leave dense.
        unit: what is removed together.
        example_inputs: for unit ``channel``: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        exact: for unit ``channel``: leave alone what cannot be removed without changing the output.

    Returns:
        Parameter or group name -> layout.

    Raises:
        ValueError: for example inputs that are missing or have no use, and for selectors that match nothing.

    Example:
        >>> from secateur.core.units import parse_unit
        >>> list(find_layout(nn.Linear(3, 2), None, None, parse_unit("weight")[0]))
        ['weight']
    """
    if not isinstance(unit, Channel):
        if example_inputs is not None or not exact:
            raise ValueError(
                f"example_inputs= and exact= trace coupled channels, and unit={unit.spec!r} needs no trace: leave "
                "them out, or take unit='channel'"
            )
        return find_targets(model, targets, exclude, unit=unit_name(unit))
    if example_inputs is None:
        raise ValueError(
            f"unit={unit.spec!r} traces the model to see which channels go together: give example_inputs=, one input "
            "(a tensor, a tuple of positional arguments, or a dict of keyword arguments); batch size 2 will do"
        )
    root = unwrap(model)
    groups = find_groups(root, example_inputs, unit="channel", exact=exact)
    layouts = {name: group.layout() for name, group in groups.items()}
    return select_groups(root, layouts, groups.frozen, targets, exclude)


def select_groups(
    root: nn.Module,
    groups: Mapping[str, KeyLayout],
    frozen: Mapping[str, str],
    targets: Selector | None = None,
    exclude: Selector | None = None,
) -> dict[str, KeyLayout]:
    """Of all removable groups those that are to be pruned, with the members that are parameters.

    A group is chosen if any tensor that makes its channels is selected, and dropped if any of its parameters is
    excluded, as a reader too: nothing of an excluded layer changes.

    Args:
        root: an unwrapped module.
        groups: group name -> layout.
        frozen: axis of a tensor -> why it cannot be removed.
        targets: what to prune; None: all groups.
        exclude: what to leave as it is.

    Returns:
        Group name -> layout; its role is "first" where the network's first layer is among the producers.

    Raises:
        ValueError: for a selector that matches no parameter, or none that makes the channels of a group, and where
            nothing is left.
    """
    first = aliases(root)
    weights = {name: key for name, key in known_weights(root).items() if name in first}
    parameters = parameters_by_name(root)
    own = {
        name: replace(key, members=tuple(member for member in key.members if member.name in parameters))
        for name, key in groups.items()
    }
    makers = {name: {member.name for member in key.members if member.part == "out"} for name, key in own.items()}
    chosen = set(own)
    if targets is not None:
        chosen.clear()
        for item, found in selected_by(root, targets, weights, other_parameters(root, weights), "targets"):
            matching = {name for name in own if makers[name] & found}
            if not matching:
                raise ValueError(_no_group(item, found, frozen))
            chosen |= matching
    if exclude is not None:
        unwanted = selected_by(root, exclude, weights, other_parameters(root, weights), "exclude")
        refuse_half_tied(root, targets, exclude, first, weights)
        dropped = set[str]().union(*(found for _, found in unwanted))
        chosen = {name for name in chosen if dropped.isdisjoint(parameter_layout({name: own[name]}))}
    if not chosen:
        raise ValueError(
            f"no group of channels to prune in {type(root).__name__}: it has {len(own)} removable groups "
            f"(targets={targets!r}, exclude={exclude!r}); what cannot be removed: {_some(frozen) or 'nothing'}"
        )
    return {name: replace(key, role=_role(makers[name], weights)) for name, key in own.items() if name in chosen}


def _role(makers: set[str], weights: Mapping[str, KeyLayout]) -> Role:
    return "first" if any(weights[name].role == "first" for name in makers if name in weights) else "hidden"


def _no_group(item: Any, found: set[str], frozen: Mapping[str, str]) -> str:
    given = item if isinstance(item, (str, type)) else type(item).__name__
    why = _some({axis: reason for axis, reason in frozen.items() if axis.rpartition(" ")[0] in found})
    return (
        f"targets={given!r} selects {', '.join(sorted(found)[:_LISTED])}, which makes the channels of no removable "
        f"group{f': {why}' if why else ''}. sc.groups(model, example_inputs=...) lists the groups and their producers"
    )


def _some(frozen: Mapping[str, str]) -> str:
    more = f"; and {len(frozen) - _LISTED} more" if len(frozen) > _LISTED else ""
    return "; ".join(f"{axis} ({reason})" for axis, reason in list(frozen.items())[:_LISTED]) + more
