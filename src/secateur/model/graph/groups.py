"""The coupled groups of a model: what goes together when it gets narrower, and what cannot go, with the reason."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from secateur.model.graph.examples import Example, as_examples, resized
from secateur.model.graph.group import Group, Groups
from secateur.model.graph.probe import Probes
from secateur.model.graph.relations import Relations
from secateur.model.graph.solve import Freedom
from secateur.model.graph.sorting import group_up
from secateur.model.graph.trace import trace
from secateur.model.graph.verify import verified
from secateur.model.names import unwrap

__all__ = ["Group", "Groups", "find_groups", "group_up", "relations_of"]


def find_groups(
    model: nn.Module, example_inputs: Any, *, unit: Freedom = "channel", exact: bool = True, verify: bool = True
) -> Groups:
    """The coupled groups of a model, found by running it once and tried on a copy; the model is not changed.

    Args:
        model: any module; wrappers are looked through.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of these,
            one for each branch of a model that decides by its data.
        unit: what goes: ``"channel"``, and inside attention ``"head"`` or ``"head_dim"``.
        exact: leave out what changes the values of others when it goes (layer norm, single places of a group norm).
        verify: take one unit of each group away from a copy, and leave out groups that do not survive it.

    Returns:
        ``Groups``: the removable ones, and the reason for each layer that cannot be touched.

    Raises:
        ValueError: if the model decides by its data and only one example is given.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> print(find_groups(net, torch.zeros(1, 1, 4, 4)))
        1 group can be removed from:
          0.weight: 4 channels; made by 0.weight; read by 4.weight, 5 more
        not from:
          4.weight out: it is an output of the model
    """
    root, examples = unwrap(model), as_examples(example_inputs)
    if unit not in get_args(Freedom):
        raise ValueError(f"unit={unit!r}: groups are of unit {', '.join(map(repr, get_args(Freedom)))}")
    relations = relations_of(root, examples)
    groups = group_up(root, relations, unit, exact=exact)
    if not (verify and groups):
        return groups
    probes = Probes(root, examples, batches=(1,))
    found = verified(probes, groups)
    if unit == "head_dim" and len(found) < len(groups):  # modules that know one width for queries and values
        coarse = verified(probes, group_up(root, relations, unit, exact=exact, one_width=True))
        return max(found, coarse, key=lambda some: sum(len(group.members) for group in some.values()))
    return found


def relations_of(root: nn.Module, examples: list[Example]) -> Relations:
    """Trace every example at batch size 2, or as it is where the model refuses that size.

    Raises:
        ValueError: if a branch depends on data and there is one example.
    """
    relations = Relations()
    for example in examples:
        trace(root, resized(example, 2), relations)
    if relations.branches and len(examples) == 1:
        raise ValueError(
            f"the model decides by its data at {relations.branches[0]}: a trace sees one branch only. Give "
            "example_inputs= a list with one example for each branch"
        )
    return relations
