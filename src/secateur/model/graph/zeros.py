"""Units that do nothing: zeros from anywhere, found by following every element through a run.

Three things are done in turn until nothing changes any more, on a copy:

1. an element of a parameter that cannot change any output (what it is multiplied with is zero, or nothing reads its
   result) is set to zero;
2. a channel that holds one value whatever the input is taken up by the bias of what reads it, where that is exact;
3. the rest is looked at again: readers that went make producers dead, producers that went make readers' inputs zero.

A unit is removable if at the end every slice of it is zero: then the network *is* the masked network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.model.graph.cutting import slices
from secateur.model.graph.examples import Example, resized
from secateur.model.graph.flow import follow
from secateur.model.graph.folding import Folded, Uses, add_to, alive_units, fold_constants, is_direction, silence
from secateur.model.graph.group import Groups
from secateur.model.graph.probe import Probes, difference, outputs_of
from secateur.model.graph.trace import tensor_names
from secateur.model.graph.verify import work_out
from secateur.model.removal import Removal
from secateur.model.removal.registry import carry_mark

__all__ = ["DeadUnits", "dead_units", "remove_dead"]


@dataclass(frozen=True)
class DeadUnits:
    """Units that can go without changing what the network computes.

    Attributes:
        keep: group -> bool mask of its units, True: stays.
        edits: tensor name -> its new value (old shape) with constants taken up; to be set before anything is sliced.
        folded: group -> how many constant channels were taken up.
        rounds: how often the network was looked at until nothing changed.
        whole: groups of which every unit is dead; one unit stays.
        reasons: group -> why constant channels of it stay.
    """

    keep: Mapping[str, Tensor]
    edits: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    folded: Mapping[str, int] = field(default_factory=dict[str, int])
    rounds: int = 1
    whole: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def count(self) -> int:
        """How many units go."""
        return sum(int((~mask).sum()) for mask in self.keep.values())

    def edit(self, root: nn.Module) -> None:
        """Take up the constants in a model, in place: its tensors stay the same objects."""
        tensors = tensor_names(root)
        with torch.no_grad():
            for name, value in self.edits.items():
                tensors[name].copy_(value)

    def __str__(self) -> str:
        dead = {name: int((~mask).sum()) for name, mask in self.keep.items()}
        lines = [f"{self.count} dead units, found in {self.rounds} rounds:"]
        for name, number in dead.items():
            if number:
                folded = f" ({self.folded[name]} constant, taken up by the next bias)" if name in self.folded else ""
                whole = "; the layer is dead as a whole, one unit stays" if name in self.whole else ""
                lines.append(f"  {name}: {number} of {self.keep[name].numel()}{folded}{whole}")
        lines += [f"  {name}: {why}" for name, why in self.reasons.items()]
        return "\n".join(lines)


def dead_units(root: nn.Module, groups: Groups, examples: Sequence[Example], *, constants: bool = True) -> DeadUnits:
    """Find the units that can go without changing what the network computes.

    Masks of any unit, batch-norm scales of zero, group penalties and dead neurons all leave zeros; so do residual
    branches that start at zero and low-rank adapters, which nobody has pruned: they count too, because the user asked
    for zeros. What is computed is what the network computes in eval mode.

    Args:
        root: an unwrapped module; it is left as it was.
        groups: of this module, by ``find_groups``.
        examples: inputs, one for each branch of a model that decides by its data. Their values do not matter; a model
            that computes numbers from the shape of its input (positions, say) is seen at these shapes only.
        constants: take up channels that hold one value other than zero by the bias of what reads them, where exact.

    Returns:
        The units that stay and, where constants were taken up, the tensors that change.

    Example:
        >>> from secateur.model.graph.groups import find_groups
        >>> from secateur.model.graph.examples import as_examples
        >>> net, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(1, 2)
        >>> with torch.no_grad():
        ...     _ = net[2].weight[:, 1].zero_(), net[0].weight[2].zero_(), net[0].bias.copy_(torch.tensor([1.0, 1, 2]))
        >>> dead = dead_units(net, find_groups(net, x), as_examples(x))
        >>> dead.keep["0.weight"], list(dead.edits)
        (tensor([ True, False, False]), ['2.bias'])

    Reference:
        Han, Pool, Tran, Dally 2015, "Learning both weights and connections", arXiv 1506.02626 (dead neurons).
    """
    clean, state = copy.deepcopy(root), Folded()
    cases = [resized(example, 2) for example in examples]
    rounds = 0
    while True:
        rounds += 1
        runs = [follow(clean, case) for case in cases]
        changed = _zero_dead(clean, groups, [live for _, live in runs])
        if constants:
            changed |= fold_constants(clean, groups, Uses.of_runs([flow for flow, _ in runs]), state)
        if not changed:
            break
    return _finish(root, clean, groups, state, rounds)


def remove_dead(
    root: nn.Module, groups: Groups, examples: Sequence[Example], *, constants: bool = True
) -> tuple[nn.Module, Removal, DeadUnits]:
    """The smaller module without its dead units, seen to return what ``root`` returns.

    Args:
        root: an unwrapped module; it is left as it was.
        groups: of this module.
        examples: as the user gave them; the probes fill them with noise, at two batch sizes.
        constants: as of ``dead_units``.

    Returns:
        The smaller module, the removal, and what was dead. ``dead.edit(model)`` and then ``remove(model, removal)``
        make the same of ``root`` itself.

    Raises:
        ValueError: if a probe fails.
    """
    dead = dead_units(root, groups, examples, constants=constants)
    base = copy.deepcopy(root)
    carry_mark(root, base)
    dead.edit(base)
    small, removal, problem = work_out(Probes(base, examples), groups, dead.keep)
    if small is not None:
        seen = Probes(root, examples).expected(root)
        problems = (difference(before, outputs_of(small, example), exact=True) for example, before in seen)
        problem = next((one for one in problems if one), "")
    if small is None or problem:
        raise ValueError(f"nothing was changed: without its dead units the model returns something else: {problem}")
    return small, removal, dead


def _zero_dead(clean: nn.Module, groups: Groups, lives: Sequence[Mapping[str, Tensor]]) -> bool:
    """Set to zero what cannot change any output; True if anything was other than zero."""
    changed = False
    members = {member.name for group in groups.values() for member in group.members}
    for name, tensor in tensor_names(clean).items():
        if name in members and isinstance(tensor, nn.Parameter) and not is_direction(name):
            dead = ~torch.stack([live[name] for live in lives]).any(0) & (tensor != 0)
            changed |= bool(dead.any())
            tensor.data[dead] = 0
    return changed


def _finish(root: nn.Module, clean: nn.Module, groups: Groups, state: Folded, rounds: int) -> DeadUnits:
    """Choose what stays of layers that are dead as a whole, and the tensors that change."""
    tensors, cleaned = tensor_names(root), tensor_names(clean)
    edits: dict[str, Tensor] = {}
    for place, amount in state.amounts.items():
        edits.setdefault(place.name, tensors[place.name].detach().clone())
        add_to(edits[place.name], amount * place.sign)
    keep, whole = dict[str, Tensor](), list[str]()
    for name, group in groups.items():
        folded, alive = state.units.get(name, set[int]()), alive_units(cleaned, group)
        alive |= not group.exact  # without it the others would change, zero or not
        if not bool(alive.any()):
            whole.append(name)
            alive[next((unit for unit in range(group.units) if unit not in folded), 0)] = True
        keep[name] = alive
        for unit in (unit for unit in folded if bool(alive[unit])):
            for tensor, _, _, part in slices(group, torch.ones(group.units, dtype=torch.bool)):
                if part == "in":
                    edits.setdefault(tensor, tensors[tensor].detach().clone())
            silence(edits, group, unit)
    folded = {name: len(units) for name, units in state.units.items()}
    return DeadUnits(keep, edits, folded, rounds, tuple(whole), dict(state.reasons))
