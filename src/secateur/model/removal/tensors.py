"""Carrying a removal out: the same module object, smaller."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.model.names import unwrap
from secateur.model.removal.attributes import update_attributes
from secateur.model.removal.journal import Journal
from secateur.model.removal.named import other_names, tensors_by_name
from secateur.model.removal.plan import Removal
from secateur.model.removal.registry import extend_mark, find_mark
from secateur.model.removal.sequence_layers import flatten_again
from secateur.model.removal.slicing import check_removal, sliced

__all__ = ["remove"]


def remove(model: nn.Module, removal: Removal) -> None:
    """Slice the tensors of a model in place and make its modules know their new sizes.

    Parameter objects stay the same, so ties, hooks, references of an optimizer, ``requires_grad``, dtype,
    device, memory format and train mode live on; ``.grad`` is sliced along (and divided by the scale, as the
    chain rule has it). Attributes follow the new shapes by the type of the module, then the removal's own are
    set. Either everything happens or nothing.

    Args:
        model: any module; ``torch.compile`` and ``DataParallel`` are looked through.
        removal: what stays of which tensor. Of tied tensors the first name; of parametrized weights the
            names of the originals, ``"conv.parametrizations.weight.original1"``.

    Raises:
        ValueError: if a name, axis, position, factor or attribute does not fit, if tensors of a module would
            not fit together, or if the model is inside ``DistributedDataParallel``.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> remove(net, Removal({"0.weight": {0: (0, 3)}, "0.bias": {0: (0, 3)}, "1.weight": {1: (0, 3)}}))
        >>> net
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    parallel = nn.parallel.DistributedDataParallel
    if isinstance(model, parallel) or any(isinstance(module, parallel) for module in unwrap(model).modules()):
        raise ValueError(
            "the model is inside DistributedDataParallel, whose buckets have the old sizes; "
            "remove from model.module, then wrap the result again"
        )
    if removal.is_empty:
        return
    root = unwrap(model)
    tensors = tensors_by_name(root)
    check_removal(removal, tensors, other_names(root))
    find_mark(root)  # drops what is no longer true of it while the old shapes can still tell
    touched = list(dict.fromkeys([*(name for name, axes in removal.kept.items() if axes), *removal.scales]))
    before = {name: old for name, (old, new) in removal.shapes(root).items() if old != new}
    _check_shared_memory(removal, tensors, touched)
    journal = Journal()
    try:
        with torch.no_grad():
            _slice_all(removal, tensors, touched, journal)
            kept = {id(tensors[name]): removal.kept.get(name, {}) for name in touched}
            told = update_attributes(root, kept, set(kept), removal.attributes, journal)
        extend_mark(root, removal, before, told)
    except BaseException:
        journal.undo()
        raise
    flatten_again(root, set(kept))


def _slice_all(removal: Removal, tensors: dict[str, Tensor], touched: list[str], journal: Journal) -> None:
    shared: dict[tuple[object, ...], Tensor] = {}
    for name in touched:
        tensor, axes, scale = tensors[name], removal.kept.get(name, {}), removal.scales.get(name, 1.0)
        grad = tensor.grad if tensor.is_leaf else None
        key = _memory(tensor) or (id(tensor),)
        if key not in shared:
            shared[key] = sliced(tensor, axes, scale)
        journal.set_data(tensor, shared[key], None if grad is None else sliced(grad, axes, 1.0 / scale))


def _memory(tensor: Tensor) -> tuple[object, ...] | None:
    """Where a tensor's numbers lie; None where there are none."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _check_shared_memory(removal: Removal, tensors: dict[str, Tensor], touched: list[str]) -> None:
    """Two tensors that are the same memory stay so, and for that they need the same slices.

    Raises:
        ValueError: naming both.
    """
    places: dict[tuple[object, ...], str] = {}
    sliced_names = set(touched)
    for name, tensor in tensors.items():
        place = _memory(tensor)
        if place is None:
            continue
        other = places.setdefault(place, name)
        if other == name or not ({other, name} & sliced_names):
            continue
        plans = [(removal.kept.get(n, {}), removal.scales.get(n, 1.0)) for n in (other, name)]
        if plans[0] != plans[1]:
            raise ValueError(f"{other!r} and {name!r} are the same memory; the removal has to slice both alike")
