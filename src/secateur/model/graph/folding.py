"""Taking up constant channels: which units are constant for all that reads them, and what has to be added where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.model.graph.constants import Place, Read, constant_positions, fold_amount, reads_of, use_counts
from secateur.model.graph.cutting import slices
from secateur.model.graph.flow import Flow
from secateur.model.graph.group import Group, Groups
from secateur.model.graph.trace import tensor_names

__all__ = ["Folded", "Uses", "add_to", "alive_units", "fold_constants", "is_direction", "silence"]


@dataclass(frozen=True)
class Uses:
    """How weights are used in each run."""

    reads: Sequence[Mapping[str, list[Read]]]
    counts: Sequence[Mapping[str, int]]

    @classmethod
    def of_runs(cls, runs: Sequence[Flow]) -> Uses:
        """How the runs used the weights."""
        return cls([reads_of(flow) for flow in runs], [use_counts(flow) for flow in runs])

    def of(self, name: str) -> list[Read] | None:
        """All uses of a weight; None where something else than a plain layer reads it."""
        found = [read for run in self.reads for read in run.get(name, [])]
        return found if len(found) == sum(run.get(name, 0) for run in self.counts) else None

    def times(self, name: str) -> int:
        """How many steps use a tensor."""
        return sum(run.get(name, 0) for run in self.counts)


@dataclass
class Folded:
    """What was folded so far."""

    amounts: dict[Place, Tensor] = field(default_factory=dict[Place, Tensor])
    units: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    reasons: dict[str, str] = field(default_factory=dict[str, str])


def is_direction(name: str) -> bool:
    """The direction of a weight norm: zeros have none."""
    return name.rpartition(".")[2] == "weight_v" or name.endswith("parametrizations.weight.original1")


def alive_units(tensors: Mapping[str, Tensor], group: Group, *, part: str | None = None) -> Tensor:
    """Which units have a slice that is not zero."""
    alive = torch.zeros(group.units, dtype=torch.bool)
    for member in group.members:
        tensor = tensors[member.name]
        skip = not isinstance(tensor, nn.Parameter) or (is_direction(member.name) and member.part == "out")
        if skip or (part is not None and member.part != part):
            continue
        nonzero = (tensor.detach() != 0).movedim(member.dim, 0).flatten(1).any(1) if tensor.dim() > 1 else tensor != 0
        owner = torch.tensor(member.owner)
        alive[owner[nonzero.cpu() & (owner >= 0)]] = True
    return alive


def fold_constants(clean: nn.Module, groups: Groups, uses: Uses, state: Folded) -> bool:
    """Take up constant channels; True if any was."""
    tensors, changed = tensor_names(clean), False
    state.reasons.clear()
    for name, group in groups.items():
        stay: list[str] = []
        for unit in _constant_units(tensors, group, uses):
            plan, why = _plan(tensors, group, unit, uses)
            if why:
                stay.append(why)
                continue
            for place, amount in plan.items():
                add_to(tensors[place.name], amount * place.sign)
                state.amounts[place] = state.amounts.get(place, torch.zeros_like(amount)) + amount
            silence(tensors, group, unit)
            state.units.setdefault(name, set()).add(unit)
            changed = True
        if stay:
            state.reasons[name] = f"{len(stay)} of {group.units} {group.kind}s are constant and stay: {stay[0]}"
    return changed


def _constant_units(tensors: Mapping[str, Tensor], group: Group, uses: Uses) -> list[int]:
    """Units that are read, and always as the same value."""
    constant = alive_units(tensors, group, part="in")
    for member in group.members if bool(constant.any()) else ():
        if member.part != "in":
            continue
        reads, owner = uses.of(member.name), torch.tensor(member.owner)
        if reads is None or any(read.dim != member.dim for read in reads):
            return []
        for read in reads:
            moving = ~constant_positions(tensors[member.name], read)
            constant[owner[moving & (owner >= 0)]] = False
    return torch.nonzero(constant).reshape(-1).tolist()


def _plan(tensors: Mapping[str, Tensor], group: Group, unit: int, uses: Uses) -> tuple[dict[Place, Tensor], str]:
    """What has to be added where for a constant unit; or why that cannot be."""
    plan, gone = dict[Place, Tensor](), torch.zeros(group.units, dtype=torch.bool)
    gone[unit] = True
    if not group.read_by_weights:
        return plan, "something other than weights reads it"
    for name, _, positions, part in slices(group, gone):
        reads = (uses.of(name) or []) if part == "in" else []
        for read in reads:
            amount = fold_amount(tensors[name], read, positions.tolist())
            if amount is None:
                continue
            if read.place is None:
                return plan, read.why
            if uses.times(read.place.name) != len(reads):
                return plan, f"{read.place.name} also serves something that does not read it"
            if not torch.equal(plan.setdefault(read.place, amount), amount):
                return plan, f"{read.place.name} is used several times, with different constants"
    return plan, ""


def add_to(tensor: Tensor, amount: Tensor) -> None:
    """Add in float64, in place."""
    tensor.data.copy_((tensor.detach().double() + amount.to(tensor.device)).to(tensor.dtype))


def silence(tensors: Mapping[str, Tensor], group: Group, unit: int) -> None:
    """Nothing reads the unit any more."""
    gone = torch.zeros(group.units, dtype=torch.bool)
    gone[unit] = True
    for name, dim, positions, part in slices(group, gone):
        if part == "in":
            tensors[name].data.index_fill_(dim, positions.to(tensors[name].device), 0.0)
