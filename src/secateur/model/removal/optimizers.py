"""The state of an optimizer, sliced along with the parameters it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from secateur.model.removal.named import Shape, tensors_by_name
from secateur.model.removal.plan import Removal
from secateur.model.removal.slicing import sliced

__all__ = ["SlicedState", "slice_optimizer", "sliced_state"]

_REDUCED_AXIS = {"exp_avg_sq_row": -1, "exp_avg_sq_col": -2, "row_var": -1, "col_var": -2}
"""Factored second moments of Adafactor, here and in transformers: key -> the axis that was averaged over."""

_POWER_OF_SCALE = {
    **dict.fromkeys(("exp_avg", "momentum_buffer", "grad_avg", "exp_inf", "mu_buffer", "prev"), -1),
    **dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "row_var", "col_var", "variance"), -2),
    **dict.fromkeys(("exp_avg_sq_row", "exp_avg_sq_col"), -2),
}
"""A parameter times s has a gradient times 1/s: moments of order k go by s to the power of -k."""


@final
class SlicedState:
    """New state tensors, made and checked, not yet in the optimizer."""

    def __init__(self) -> None:
        self._entries: list[tuple[dict[str, Any], str, Tensor]] = []

    def add(self, state: dict[str, Any], key: str, tensor: Tensor) -> None:
        """Note one new tensor."""
        self._entries.append((state, key, tensor))

    def __len__(self) -> int:
        return len(self._entries)

    def put(self) -> None:
        """Into the optimizer. Nothing in here can fail."""
        for state, key, tensor in self._entries:
            state[key] = tensor


def slice_optimizer(
    optimizer: Optimizer, model: nn.Module, removal: Removal, before_shapes: Mapping[str, Shape]
) -> None:
    """Slice the state of an optimizer as ``removal`` slices its parameters; all of it or nothing.

    The optimizer keeps its identity, groups, hooks and step counts. Works before ``remove`` and after it,
    since it looks at ``before_shapes`` and never at the parameters' own shapes. Do it before, or call
    ``sliced_state`` before, to learn of a refusal while the model is still whole.

    Args:
        optimizer: of any type whose state has the parameters' shapes, or means of it over one axis (Adafactor).
        model: whose parameters it holds.
        removal: what is, or was, removed.
        before_shapes: ``tensor_shapes(model)`` from before the removal.

    Raises:
        ValueError: for LBFGS, for state of an unknown shape (naming its key), or if none of the parameters
            is the model's.

    Example:
        >>> import torch
        >>> from secateur.model.removal import remove, tensor_shapes
        >>> net, removal = nn.Linear(3, 4), Removal({"weight": {0: (0, 2)}, "bias": {0: (0, 2)}})
        >>> adam, before = torch.optim.Adam(net.parameters()), tensor_shapes(net)
        >>> net(torch.randn(2, 3)).sum().backward()
        >>> adam.step()
        >>> slice_optimizer(adam, net, removal, before)
        >>> remove(net, removal)
        >>> adam.state[net.weight]["exp_avg"].shape
        torch.Size([2, 3])
    """
    sliced_state(optimizer, model, removal, before_shapes).put()


def sliced_state(
    optimizer: Optimizer, model: nn.Module, removal: Removal, before_shapes: Mapping[str, Shape]
) -> SlicedState:
    """The first half of ``slice_optimizer``: everything that can fail, and no change.

    Args:
        optimizer: see ``slice_optimizer``.
        model: see there.
        removal: see there.
        before_shapes: see there.

    Returns:
        The new state; ``put()`` puts it into the optimizer.

    Raises:
        ValueError: see there.
    """
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "LBFGS keeps a history of the whole flat parameter vector, which cannot be sliced; "
            "make a new LBFGS for the smaller model"
        )
    names = {id(tensor): name for name, tensor in tensors_by_name(model).items()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(id(parameter) in names for parameter in held):
        raise ValueError("none of the optimizer's parameters belongs to this model; give the optimizer that trains it")
    found = SlicedState()
    for parameter in held:
        name = names.get(id(parameter))
        if name is None or parameter not in optimizer.state or not _touched(removal, name):
            continue
        if name not in before_shapes:
            raise ValueError(f"before_shapes does not say what shape {name!r} had; give tensor_shapes(model)")
        state = optimizer.state[parameter]
        for key, value in state.items():
            _check_plain(value, key, name)
            if isinstance(value, Tensor) and value.numel() > 1:
                found.add(state, key, _sliced(value, key, name, tuple(before_shapes[name]), removal))
    return found


def _touched(removal: Removal, name: str) -> bool:
    return bool(removal.kept.get(name)) or name in removal.scales


def _check_plain(value: object, key: str, name: str) -> None:
    """Nested state would be left unsliced without a word."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if any(isinstance(entry, (Tensor, list, tuple, dict)) for entry in entries):
        raise ValueError(f"the optimizer's state {key!r} of {name!r} is a {type(value).__name__} of tensors; {_TRY}")


_TRY = "this cannot be sliced; shrink without optimizer= and make a new optimizer"


def _sliced(value: Tensor, key: str, name: str, shape: Shape, removal: Removal) -> Tensor:
    kept = removal.kept.get(name, {})
    scale = removal.scales.get(name, 1.0) ** _POWER_OF_SCALE.get(key, 0)
    if tuple(value.shape) == shape:
        return sliced(value, kept, scale)
    plans = [
        plan for axis, plan in _reduced_plans(shape, kept, tuple(value.shape)) if _REDUCED_AXIS.get(key, axis) == axis
    ]
    if not plans or any(plan != plans[0] for plan in plans):
        raise ValueError(
            f"the optimizer's state {key!r} of {name!r} has shape {tuple(value.shape)}, which "
            f"{'may be either' if plans else 'is no'} mean of {shape} over one axis; {_TRY}"
        )
    return sliced(value, plans[0], scale)


def _reduced_plans(
    shape: Shape, kept: Mapping[int, tuple[int, ...]], found: Shape
) -> list[tuple[int, dict[int, tuple[int, ...]]]]:
    """(axis counted from the end, slices) for every axis whose mean, with or without that axis, has the shape found."""
    plans: list[tuple[int, dict[int, tuple[int, ...]]]] = []
    for axis in range(len(shape)):
        others = {dim: positions for dim, positions in kept.items() if dim != axis}
        if found == (*shape[:axis], 1, *shape[axis + 1 :]):
            plans.append((axis - len(shape), others))
        elif found == (*shape[:axis], *shape[axis + 1 :]):
            plans.append((axis - len(shape), {dim - (dim > axis): positions for dim, positions in others.items()}))
    return plans
