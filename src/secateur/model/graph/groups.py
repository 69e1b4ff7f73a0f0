"""The coupled groups of a model: what goes together when it gets narrower, and what cannot go, with the reason."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from secateur.model.graph.examples import as_examples
from secateur.model.graph.group import Group, Groups
from secateur.model.graph.learned import learn
from secateur.model.graph.probe import Probes
from secateur.model.graph.solve import Freedom
from secateur.model.graph.verify import verified
from secateur.model.names import unwrap

__all__ = ["Group", "Groups", "find_groups"]


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
    learned = learn(root, examples)
    groups = learned.groups(root, unit, exact=exact)
    if not (verify and groups):
        return groups
    probes = Probes(root, learned.smaller(examples), batches=(1,), shared=learned.shares)
    found = verified(probes, groups)
    if unit == "head_dim" and len(found) < len(groups):  # modules that know one width for queries and values
        coarse = verified(probes, learned.groups(root, unit, exact=exact, one_width=True))
        return max(found, coarse, key=lambda some: sum(len(group.members) for group in some.values()))
    return found
