"""Zeros of any origin become removal; and the last step of every removal: the model that was asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import Optimizer

from secateur.model.graph.examples import Example
from secateur.model.graph.groups import find_groups
from secateur.model.graph.learned import learn
from secateur.model.graph.solve import Freedom
from secateur.model.graph.zeros import remove_dead
from secateur.model.masks import find_masks
from secateur.model.registry import forget_masks
from secateur.model.removal import Removal, remove, sliced_state, tensor_shapes
from secateur.model.removal.registry import carry_mark

__all__ = ["carry_out", "shrink_zeros"]


def shrink_zeros(
    root: nn.Module, examples: Sequence[Example], unit: Freedom, optimizer: Optimizer | None, inplace: bool
) -> tuple[nn.Module, Optimizer | None]:
    """Take out the units whose zeros keep them from changing the output.

    Args:
        root: an unwrapped module; masks of any unit may have made its zeros.
        examples: inputs of the model.
        unit: the kind of unit.
        optimizer: its state is sliced along.
        inplace: shrink these, not copies.

    Returns:
        The smaller model and its optimizer.

    Raises:
        ValueError: if masked weights have grown back, or no unit is dead.
    """
    masks = find_masks(root)
    if masks is not None:
        masks.check()
    groups = find_groups(root, list(examples), unit=unit)
    learn(root, list(examples), sure=True).refuse_unprovable()
    small, removal, dead = remove_dead(root, groups, examples)
    if not dead.count:
        raise ValueError(f"from_zeros=True: nothing to remove, every unit can still change the output. {dead}")
    return carry_out(root, optimizer, inplace, small, removal, dead.edit)


def carry_out(
    root: nn.Module,
    optimizer: Optimizer | None,
    inplace: bool,
    small: nn.Module,
    removal: Removal,
    edit: Callable[[nn.Module], None] | None = None,
) -> tuple[nn.Module, Optimizer | None]:
    """The smaller copy there is, a new one with its optimizer, or the user's own model and optimizer.

    Args:
        root: the user's unwrapped module.
        optimizer: of its parameters.
        inplace: change these two.
        small: a copy that passed its probes.
        removal: how it was made.
        edit: sets values before anything is sliced.

    Returns:
        Model and optimizer.

    Raises:
        ValueError: if the optimizer's state cannot be sliced; nothing has changed then.
    """
    if not inplace and optimizer is None:
        return small, None
    target, also = (root, optimizer) if inplace else copy.deepcopy((root, optimizer))
    if target is not root:
        carry_mark(root, target)
    state = None if also is None else sliced_state(also, target, removal, tensor_shapes(target))
    if edit is not None:
        edit(target)
    remove(target, removal)
    if state is not None:
        state.put()
    if inplace:
        forget_masks(target)
    return target, also
