"""Kept weights that a solver or a merge changed, with what they were, so that nothing is destroyed silently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from secateur.model.graph.trace import tensor_names
from secateur.model.sharding import is_sharded

if TYPE_CHECKING:
    from secateur.model.masks import Masks

__all__ = ["EditedValues", "checked", "dense_model", "dense_values", "edit", "holding"]


@final
class EditedValues:
    """Per parameter, its values before the first edit and behind the last; two tensors of its size."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __copy__(self) -> EditedValues:
        made = EditedValues()
        made._values = dict(self._values)
        return made

    def names(self) -> tuple[str, ...]:
        """What was edited."""
        return tuple(self._values)

    def keep(self, name: str, before: Tensor, after: Tensor, kept: Tensor | None = None) -> None:
        """Remember an edit; where masks removed a weight since the last one, that one's value is what they hide."""
        if name not in self._values:
            self._values[name] = before.detach().clone(), after.detach().clone()
            return
        first, last = self._values[name]
        self._values[name] = first, after.detach().clone() if kept is None else torch.where(kept, after.detach(), last)

    def original(self, name: str, tensor: Tensor) -> Tensor:
        """The values before the first edit, where they were not trained since."""
        if name not in self._values:
            return tensor.detach().clone()
        before, after = self._values[name]
        return torch.where(tensor == after.to(tensor), before.to(tensor), tensor).detach()

    def put_back(self, root: nn.Module) -> None:
        """Restore what still is as the last edit left it; what was trained since stays."""
        tensors = tensor_names(root)
        for name, (before, after) in self._values.items():
            tensor = tensors[name].detach()
            tensor.copy_(torch.where(tensor == after.to(tensor), before.to(tensor), tensor))

    def state_dict(self) -> dict[str, Any]:
        """Name -> values before and behind the edits, for a checkpoint."""
        return {name: [before, after] for name, (before, after) in self._values.items()}

    @classmethod
    def restored(cls, state: dict[str, Any] | None) -> EditedValues | None:
        """The inverse of ``state_dict``; None where the values were given up."""
        if state is None:
            return None
        made = cls()
        made._values = {name: (before.clone(), after.clone()) for name, (before, after) in state.items()}
        return made


@torch.no_grad()
def dense_values(masks: Masks, names: Iterable[str]) -> dict[str, Tensor]:
    """What masked parameters were before they were pruned and edited; what was trained since counts as it is.

    Args:
        masks: of the model, which is left as it is.
        names: parameters.

    Returns:
        Name -> a tensor of its own.

    Raises:
        ValueError: if the removed values were given up.

    Example:
        >>> import secateur as sc
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 3.0]]))
        >>> dense_values(sc.prune(net, sparsity=0.5), ["weight"])["weight"].tolist()
        [[1.0, 3.0]]
    """
    tensors, edited = tensor_names(masks.model), masks.edited
    if edited is None:
        raise ValueError("the removed values are gone (commit() was called, or undo=False): give dense=, a state dict")
    masks.restore_values()
    try:
        return {name: edited.original(name, tensors[name]) for name in names}  # also of what went behind an edit
    finally:
        masks.apply()


@contextmanager
def holding(root: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Parameters and buffers with these values for the moment; what they were is put back bit by bit."""
    tensors = {name: tensor.detach() for name, tensor in tensor_names(root).items() if name in values}
    now = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.copy_(now[name])


@contextmanager
def dense_model(masks: Masks) -> Iterator[None]:
    """The model as it was before masks and edits, for the moment; what was trained since counts as it is.

    Raises:
        ValueError: if the removed values were given up.
    """
    names = [*masks, *(() if masks.edited is None else masks.edited.names())]
    with holding(masks.model, dense_values(masks, names)):
        yield


def checked(root: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """New values of parameters and buffers in the type and on the device of these; nothing is changed.

    Raises:
        ValueError: for an unknown name, another shape, sharded parameters, and values that are not finite, or are not
            in the parameter's type.
    """
    tensors, found = tensor_names(root), dict[str, Tensor]()
    if unknown := [name for name in values if name not in tensors]:
        raise ValueError(f"{unknown[0]!r} is no parameter or buffer of {type(root).__name__}")
    for name, value in values.items():
        tensor = tensors[name]
        if is_sharded(tensor):
            raise ValueError(f"{name!r} is sharded; edit weights before fully_shard")
        if tensor.shape != value.shape:
            raise ValueError(f"{name!r} has shape {tuple(tensor.shape)}, the new values {tuple(value.shape)}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"the new values of {name!r} are not finite; nothing was changed")
        found[name] = value.detach().to(tensor)
        if not bool(torch.isfinite(found[name]).all()):
            raise ValueError(
                f"the new values of {name!r} reach {float(value.abs().max()):g}, more than {tensor.dtype} holds; "
                "nothing was changed. Turn the model to float32 first, or take more damping"
            )
    return found


@torch.no_grad()
def edit(masks: Masks, values: Mapping[str, Tensor]) -> None:
    """Give parameters new values together with their masks: a merge, a refit, the update of a solver.

    Removed weights stay zero whatever is given for them. ``masks.undo()`` puts the old values back, where they were
    not trained since; ``masks.commit()`` gives them up.

    Args:
        masks: of the model.
        values: parameter or buffer name -> new values, in its shape; biases, norms and weights without masks may be
            among them.

    Raises:
        ValueError: for whatever ``checked`` refuses; nothing is changed then.

    Example:
        >>> import secateur as sc
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 3.0]]))
        >>> masks = sc.prune(net, sparsity=0.5)
        >>> edit(masks, {"weight": torch.tensor([[7.0, 4.0]])})
        >>> net.weight.tolist()
        [[0.0, 4.0]]
        >>> masks.undo()
        >>> net.weight.tolist()
        [[1.0, 3.0]]
    """
    tensors, found = tensor_names(masks.model), checked(masks.model, values)
    for name, new in found.items():
        tensor = tensors[name]
        kept = masks[name].to(tensor.device) if name in masks else None
        if kept is not None:
            new = torch.where(kept, new, torch.zeros((), dtype=new.dtype, device=new.device))
        if masks.edited is not None:
            masks.edited.keep(name, tensor, new, kept)
        tensor.detach().copy_(new)
