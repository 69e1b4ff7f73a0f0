"""Groups that were seen to work: each loses a unit once before it is shown to anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from secateur.model.graph.cutting import Keep, removal_of
from secateur.model.graph.group import Group, Groups
from secateur.model.graph.probe import Probes
from secateur.model.graph.repair import hypotheses
from secateur.model.removal import Removal

__all__ = ["verified", "work_out"]


def work_out(probes: Probes, groups: Mapping[str, Group], keep: Keep) -> tuple[nn.Module | None, Removal, str]:
    """Find a removal that passes the probes.

    Args:
        probes: on the model.
        groups: by name.
        keep: the units that stay.

    Returns:
        ``(smaller model, removal, "")``, or ``(None, the plain removal, what went wrong with it)``.
    """
    plain = removal_of(probes.root, groups, keep)
    problem = probes.silent(groups, keep)
    if problem:
        return None, plain, f"units that nothing should read are read: {problem}"
    first = ""
    for removal in hypotheses(probes.root, plain, groups, keep):
        small, problem = probes.check(groups, keep, removal)
        if small is not None:
            return small, removal, ""
        first = first or problem
    return None, plain, first


def verified(probes: Probes, groups: Groups) -> Groups:
    """Leave out the groups that do not survive the loss of one unit, with what went wrong as the reason."""
    bad: dict[str, str] = {}
    _search(probes, groups, list(groups), bad)
    # One group may hide another's trouble: what is left has to work together.
    left = [name for name in groups if name not in bad]
    problem = _problem(probes, groups, left) if bad else ""
    if problem:
        bad |= dict.fromkeys(left, problem)
    frozen = {**groups.frozen, **{f"{name} out": why for name, why in bad.items()}}
    found = {name: group for name, group in groups.items() if name not in bad}
    return replace(groups, found=found, frozen=frozen)


def _search(probes: Probes, groups: Groups, names: Sequence[str], bad: dict[str, str]) -> None:
    """Halve a set of groups that fails together until single ones are found."""
    if not names:
        return
    problem = _problem(probes, groups, names)
    if not problem:
        return
    if len(names) == 1:
        bad[names[0]] = problem
        return
    middle = len(names) // 2
    _search(probes, groups, names[:middle], bad)
    _search(probes, groups, names[middle:], bad)


def _problem(probes: Probes, groups: Groups, names: Sequence[str]) -> str:
    keep = {name: _all_but_one(groups[name].units) for name in names}
    return work_out(probes, groups, keep)[2] if keep else ""


def _all_but_one(units: int) -> torch.Tensor:
    mask = torch.ones(units, dtype=torch.bool)
    mask[units // 2] = False
    return mask
