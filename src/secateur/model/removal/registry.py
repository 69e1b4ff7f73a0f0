"""Which models were made smaller, and by what: one weak table beside the models, never inside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from secateur.model.names import unwrap
from secateur.model.removal.named import Shape, tensors_by_name
from secateur.model.removal.plan import Kept, Removal

__all__ = ["Mark", "carry_mark", "extend_mark", "find_mark", "find_removal", "mark_shrunk", "set_mark"]


_Entry = TypeVar("_Entry")


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """What is known about a model that is smaller than its class builds it.

    Attributes:
        removal: from the model as its class built it to this one; None: it came from a file, which does not say.
        before: the shapes that the changed tensors had in the class as it was built; None: not known.
        attributes: module name -> attributes that the shapes of the tensors do not tell.
        kept: of the sliced tensors those that ``state_dict()`` leaves out, and which positions stayed.
    """

    removal: Removal | None
    before: Mapping[str, Shape] | None
    attributes: Mapping[str, tuple[str, ...]]
    kept: Kept


_MARKS: WeakKeyDictionary[nn.Module, Mark] = WeakKeyDictionary()


def mark_shrunk(model: nn.Module, removal: Removal, before: Mapping[str, Shape] | None = None) -> None:
    """Note that a model is what ``removal`` left of its class. ``remove`` does it by itself.

    Args:
        model: the smaller model, wrapped or not.
        removal: from the model as its class builds it to this one; later removals are joined by ``then``.
        before: shapes of the sliced tensors before; None: what is noted already, if anything.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> mark_shrunk(net, Removal({"weight": {0: (0, 1)}}))
        >>> find_removal(net).kept
        {'weight': {0: (0, 1)}}
    """
    root, known = unwrap(model), find_mark(model)
    attributes = {name: tuple(values) for name, values in removal.attributes.items()}
    if known is not None:
        attributes = _joined(known.attributes, attributes)
        before = known.before if before is None else before
    _MARKS[root] = Mark(removal, before, attributes, _outside_state(root, removal.kept))


def extend_mark(
    model: nn.Module, removal: Removal, before: Mapping[str, Shape], attributes: Mapping[str, tuple[str, ...]]
) -> None:
    """Add a removal that was just carried out.

    Args:
        model: after it.
        removal: what was done.
        before: shapes of the tensors it changed, before.
        attributes: those that the shapes do not tell.
    """
    root, known = unwrap(model), _MARKS.get(unwrap(model))
    kept = _outside_state(root, removal.kept)
    if known is None:
        _MARKS[root] = Mark(removal, dict(before), attributes, kept)
        return
    _MARKS[root] = Mark(
        None if known.removal is None else known.removal.then(removal),
        None if known.before is None else {**before, **known.before},
        _joined(known.attributes, attributes),
        Removal(known.kept).then(Removal(kept)).kept,
    )


def set_mark(model: nn.Module, mark: Mark | None) -> None:
    """Put a mark in place of the one that is there, if any; None: take it away."""
    if mark is None:
        _MARKS.pop(unwrap(model), None)
    else:
        _MARKS[unwrap(model)] = mark


def carry_mark(model: nn.Module, copy: nn.Module) -> None:
    """Let a copy made by ``deepcopy`` know what was removed from the model, as long as nobody has changed it.

    Args:
        model: the one that was copied.
        copy: of the same shapes.

    Example:
        >>> from copy import deepcopy
        >>> net = nn.Linear(2, 2)
        >>> mark_shrunk(net, Removal({"weight": {0: (0, 1)}}))
        >>> twin = deepcopy(net)
        >>> carry_mark(net, twin)
        >>> find_removal(twin) == find_removal(net)
        True
    """
    set_mark(copy, find_mark(model))


def find_mark(model: nn.Module) -> Mark | None:
    """The mark of a model without what is no longer true because layers were replaced since; None: no mark."""
    root = unwrap(model)
    mark = _MARKS.get(root)
    if mark is None:
        return None
    tensors = tensors_by_name(root)
    removal = mark.removal
    gone = {name for name, axes in mark.kept.items() if not _fits(tensors.get(name), axes)}
    if removal is not None:
        gone |= {name for name, axes in removal.kept.items() if not _fits(tensors.get(name), axes)}
    if gone:
        if removal is not None:
            removal = Removal(_without(removal.kept, gone), removal.attributes, _without(removal.scales, gone))
        before = None if mark.before is None else _without(mark.before, gone)
        mark = _MARKS[root] = Mark(removal, before, mark.attributes, _without(mark.kept, gone))
    return mark


def find_removal(model: nn.Module) -> Removal | None:
    """What was removed from a model since its class built it.

    Args:
        model: wrapped or not.

    Returns:
        The removal; None if nothing was, if the model is a copy, or if it was loaded from a file.

    Example:
        >>> find_removal(nn.Linear(2, 2)) is None
        True
    """
    mark = find_mark(model)
    return None if mark is None else mark.removal


def _outside_state(root: nn.Module, kept: Kept) -> dict[str, Mapping[int, tuple[int, ...]]]:
    hidden = {id(m._buffers.get(name)) for m in root.modules() for name in m._non_persistent_buffers_set}
    tensors = tensors_by_name(root)
    return {name: axes for name, axes in kept.items() if name in tensors and id(tensors[name]) in hidden}


def _joined(first: Mapping[str, tuple[str, ...]], then: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    names = dict.fromkeys([*first, *then])
    return {name: tuple(dict.fromkeys([*first.get(name, ()), *then.get(name, ())])) for name in names}


def _fits(tensor: Tensor | None, axes: Mapping[int, tuple[int, ...]]) -> bool:
    return tensor is not None and all(
        dim < tensor.dim() and tensor.shape[dim] == len(positions) for dim, positions in axes.items()
    )


def _without(table: Mapping[str, _Entry], gone: set[str]) -> dict[str, _Entry]:
    return {name: value for name, value in table.items() if name not in gone}
