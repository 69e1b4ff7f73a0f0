"""Units of coupled groups in another order: every tensor that makes, carries or reads them follows.

A reordering is a removal that keeps every position, in a new order: it is tried on a copy and carried out by the same
hands, all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.model.graph.examples import as_examples
from secateur.model.graph.group import Group, Groups
from secateur.model.graph.learned import learn
from secateur.model.graph.probe import Probes, outputs_of
from secateur.model.names import clean_name
from secateur.model.registry import find_masks
from secateur.model.removal import Removal, remove, sliced_state, tensor_shapes
from secateur.model.removal.registry import find_mark, set_mark
from secateur.types import Member

__all__ = ["Reordering", "carry_out", "places_of", "refuse_unmovable", "reordered", "turned_back"]


def places_of(member: Member, units: int) -> Tensor | None:
    """Where the units lie along the axis of a member.

    Returns:
        Positions ``[units, positions of each]``, ascending; None where units have different numbers of them.

    Example:
        >>> places_of(Member("a", (4, 2), 0, "out", (0, 1, 0, 1)), 2).tolist()
        [[0, 2], [1, 3]]
    """
    owner = torch.tensor(member.owner)
    owned = (owner >= 0).nonzero().flatten()
    counts = torch.bincount(owner[owned], minlength=units)
    if not bool((counts == counts[0]).all()):
        return None
    return owned[owner[owned].argsort(stable=True)].view(units, -1)


def reordered(groups: Mapping[str, Group], orders: Mapping[str, Sequence[int]]) -> Removal:
    """The removal of nothing that brings units into another order.

    Args:
        groups: by name, of units that each have equally many positions in a member.
        orders: group name -> the unit that comes to stand in each slot.

    Returns:
        What ``remove`` carries out.

    Example:
        >>> group = Group("a", 2, (Member("a", (4, 2), 0, "out", (0, 1, 0, 1)),))
        >>> reordered({"a": group}, {"a": (1, 0)}).kept
        {'a': {0: (1, 0, 3, 2)}}
    """
    found: dict[tuple[str, int], Tensor] = {}
    for name, order in orders.items():
        group = groups[name]
        for member in group.members:
            places = places_of(member, group.units)
            assert places is not None, (name, member.name)
            whole = found.setdefault((member.name, member.dim), torch.arange(len(member.owner)))
            whole[places] = places[torch.tensor(tuple(order))]
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for (name, dim), positions in found.items():
        kept.setdefault(name, {})[dim] = tuple(positions.tolist())
    return Removal(kept)


def turned_back(removal: Removal) -> Removal:
    """What undoes a reordering.

    Example:
        >>> turned_back(Removal({"a": {0: (1, 2, 0)}})).kept
        {'a': {0: (2, 0, 1)}}
    """
    return Removal(
        {
            name: {dim: tuple(torch.tensor(positions).argsort().tolist()) for dim, positions in axes.items()}
            for name, axes in removal.kept.items()
        }
    )


@final
class Reordering:
    """The groups of a model whose units may change places, each seen to, on a copy.

    A layer norm or a mean over channels does not mind their order, so these groups may be reordered though they could
    not lose a unit exactly. Inside attention the places of all heads change alike.

    Args:
        root: an unwrapped module; it is not changed.
        example_inputs: as for ``find_groups``.

    Attributes:
        groups: by name.
        left: group, or axis of a tensor, that keeps its order -> why.

    Raises:
        ValueError: for example inputs that do not say enough, and models that no copy can stand for.
    """

    def __init__(self, root: nn.Module, example_inputs: Any) -> None:
        examples = as_examples(example_inputs)
        learned = learn(root, examples)
        learned.refuse_unprovable()
        self._probes = Probes(root, learned.smaller(examples), batches=(1,), shared=learned.shares)
        self._expected = list(self._probes.expected(root))
        self._expected += [(example, outputs_of(root, example)) for example in examples]
        found = _with_heads(learned.groups(root, "channel", exact=False), learned.groups(root, "head_dim", exact=False))
        self.left: dict[str, str] = {**_unmovable(root, found), **found.frozen}
        self.groups: dict[str, Group] = {name: group for name, group in found.items() if name not in self.left}
        generator = torch.Generator().manual_seed(0)
        anyhow = {
            name: tuple(torch.randperm(group.units, generator=generator).tolist())
            for name, group in self.groups.items()
        }
        self._leave_what_matters(list(self.groups), anyhow)

    def problem(self, orders: Mapping[str, Sequence[int]]) -> str:
        """What a model would compute otherwise with its units in these orders, in words; nothing where it would not."""
        removal = reordered(self.groups, orders)
        said = self._probes.check(removal, self._expected, exact=True)[1]
        return said.replace("the masked model", "the model").replace("the smaller model", "the reordered model")

    def _leave_what_matters(self, names: Sequence[str], orders: Mapping[str, Sequence[int]]) -> None:
        """Halve a set of groups that cannot be reordered together until single ones are found."""
        if not names:
            return
        said = self.problem({name: orders[name] for name in names})
        if not said:
            return
        if len(names) == 1:
            self.left[names[0]] = f"its units cannot change places: {said}"
            del self.groups[names[0]]
            return
        middle = len(names) // 2
        self._leave_what_matters(names[:middle], orders)
        self._leave_what_matters(names[middle:], orders)


def _with_heads(channels: Groups, places: Groups) -> Groups:
    """Channels, and inside attention the places of all heads alike."""
    moved = {f"{member.name} out" for group in places.values() for member in group.members if member.part == "out"}
    inside = {name if name not in channels else f"{name}#heads": group for name, group in places.items()}
    return Groups(
        {**channels.found, **inside}, {axis: why for axis, why in channels.frozen.items() if axis not in moved}
    )


def _unmovable(root: nn.Module, groups: Groups) -> dict[str, str]:
    """Groups that are not even tried."""
    passing = {
        clean_name(f"{path}.{name}" if path else name)
        for path, module in root.named_modules()
        for name in module._non_persistent_buffers_set
    }
    found: dict[str, str] = {}
    for name, group in groups.items():
        for member in group.members:
            if places_of(member, group.units) is None:
                found[name] = f"its units have different numbers of places in {member.name!r}"
            elif member.name in passing:
                found[name] = f"the buffer {member.name!r} is not in the state dict, so no file could hold its order"
    return found


def refuse_unmovable(model: nn.Module, root: nn.Module, what: str) -> None:
    """Refuse what cannot follow a change of order.

    Args:
        model: as the user gave it.
        root: unwrapped.
        what: is to be done, for the message.

    Raises:
        ValueError: for masks, and data-parallel wrappers.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "the model is inside DistributedDataParallel, whose processes would each order channels by their own data: "
            "permute model.module before it is wrapped, and load its weights in every process"
        )
    if find_masks(root) is not None:
        raise ValueError(
            f"this model has masks, which go by the order that its channels have: {what} before pruning, or call "
            "masks.undo() first"
        )


def carry_out(root: nn.Module, removal: Removal, optimizers: Iterable[Optimizer] = ()) -> None:
    """Bring the tensors of a model, their gradients and the state of optimizers into another order.

    Args:
        root: an unwrapped module.
        removal: that keeps every position.
        optimizers: of the model.

    Raises:
        ValueError: for whatever ``remove`` and ``sliced_state`` refuse; nothing is changed then.
    """
    shapes = tensor_shapes(root)
    states = [sliced_state(optimizer, root, removal, shapes) for optimizer in optimizers]
    smaller = find_mark(root) is not None
    remove(root, removal)
    if not smaller:
        set_mark(root, None)  # it is as its class builds it
    for state in states:
        state.put()
