"""The shapes of a smaller model, brought back into the class that builds the large one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.model.names import clean_name, unwrap
from secateur.model.removal.attributes import derivation, update_attributes
from secateur.model.removal.journal import Journal
from secateur.model.removal.named import Shape, modules_by_name, other_names, tensors_by_name
from secateur.model.removal.plan import Kept, Removal, Value
from secateur.model.removal.registry import Mark, find_mark
from secateur.model.removal.resized import Resized
from secateur.model.removal.sequence_layers import flatten_again
from secateur.model.removal.slicing import check_resizable, empty_like, sliced

__all__ = ["Structure", "reshape", "restore_shapes", "structure"]

_NEVER_TOLD = ("groups", "num_groups", "num_heads", "padding_idx")
_UNTOLD = (*_NEVER_TOLD, "num_features", "normalized_shape", "unflattened_size")
"""What torch's own modules remember and a removal may have changed: no tensor tells the first four, and the
others only where the module has tensors."""


@final
@dataclass(frozen=True, slots=True)
class Structure:
    """What a file says about a smaller model beside the shapes of its tensors.

    Attributes:
        before: shapes of the changed tensors in the class as it was built; None: not known.
        attributes: module name -> attribute -> value.
        kept: slices of tensors that are in no ``state_dict()`` (non-persistent buffers).
    """

    before: Mapping[str, Shape] | None
    attributes: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Structure:
        """Of a model that was shrunk; of one whose mark was lost in copying, everything that may matter."""
        mark = find_mark(model)
        if mark is None:
            return cls(None, structure(model))
        before = mark.before
        if before is not None:  # a file stores tied tensors under all their names
            before = {
                **before,
                **{n: before[first] for n, first in other_names(unwrap(model)).items() if first in before},
            }
        return cls(before, structure(model, mark.attributes), mark.kept)

    def mark(self) -> Mark:
        """The mark of a model that was brought to this structure."""
        return Mark(None, self.before, {name: tuple(values) for name, values in self.attributes.items()}, self.kept)

    def to_record(self) -> dict[str, Any]:
        """Plain JSON."""
        before = None if self.before is None else {name: list(shape) for name, shape in self.before.items()}
        return {"before": before, "removal": Removal(self.kept, self.attributes).to_record()}

    @classmethod
    def from_record(cls, record: object) -> Structure:
        """The inverse of ``to_record``.

        Args:
            record: what JSON gave back, from anywhere.

        Returns:
            The structure.

        Raises:
            ValueError: saying what in the record is not as it should be.
        """
        if not isinstance(record, dict) or set(record) != {"before", "removal"}:
            raise ValueError("the record of a shrunk model has the keys before and removal")
        removal = Removal.from_record(record["removal"])
        before = record["before"]
        if before is None:
            return cls(None, removal.attributes, removal.kept)
        if not isinstance(before, dict) or not all(map(_is_shape, before.values())):
            raise ValueError("the record of a shrunk model: before is a table of shapes")
        return cls({name: tuple(shape) for name, shape in before.items()}, removal.attributes, removal.kept)


def structure(model: nn.Module, attributes: Mapping[str, tuple[str, ...]] | None = None) -> dict[str, dict[str, Value]]:
    """What cannot be told from the shapes of a model's tensors: plain numbers that its modules remember.

    Args:
        model: any module.
        attributes: module name -> which attributes; None: of modules that torch and this package know those
            that no tensor tells (groups, heads, padding), of all others with parameters every public integer,
            float and tuple of integers.

    Returns:
        Module name -> attribute -> value, plain JSON but for the tuples; names without any are left out.

    Example:
        >>> structure(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.GroupNorm(2, 4), nn.ReLU()))
        {'0': {'groups': 4}, '1': {'num_groups': 2}}
    """
    found: dict[str, dict[str, Value]] = {}
    names = modules_by_name(model)
    visited: set[int] = set()
    for name, module in names.items():
        if attributes is not None:
            keys = [key for key in attributes.get(name, ()) if _is_plain(getattr(module, key, None))]
        elif id(module) in visited:
            continue
        else:
            keys = _beyond_shapes(name, module)
        visited.add(id(module))
        if keys:
            found[name] = {key: _plain(getattr(module, key)) for key in keys}
    return found


def restore_shapes(model: nn.Module, shapes: Mapping[str, Shape], structure: Mapping[str, Mapping[str, Value]]) -> None:
    """Give a model the shapes of another of its class; the values of what changes are undefined afterwards.

    Axes may shrink and grow. Modules learn their new sizes, then ``structure`` is set. All of it or nothing.

    Args:
        model: as its class builds it.
        shapes: tensor name -> shape. Tensors that are not named stay.
        structure: module name -> attribute -> value.

    Raises:
        ValueError: if a name or the number of axes is not the model's, tied names differ, tensors of a module
            would not fit together, or an attribute cannot be set.

    Example:
        >>> net = nn.Linear(4, 3)
        >>> restore_shapes(net, {"weight": (2, 4), "bias": (2,)}, {})
        >>> net
        Linear(in_features=4, out_features=2, bias=True)
    """
    reshape(model, shapes, Structure(None, structure))


def reshape(model: nn.Module, shapes: Mapping[str, Shape], wanted: Structure) -> Journal:
    """``restore_shapes`` that can still be taken back: by ``undo()`` of what it returns.

    Args:
        model: see ``restore_shapes``.
        shapes: see there.
        wanted: attributes, and slices of tensors that ``shapes`` does not name.

    Returns:
        The journal of the change.

    Raises:
        ValueError: see there; the model is untouched then.
    """
    root = unwrap(model)
    changes = _changes(root, shapes)
    slices = _slices(tensors_by_name(root), wanted)
    journal = Journal()
    try:
        with torch.no_grad():
            for name, tensor, shape in changes:
                check_resizable(name, tensor)
                journal.set_data(tensor, empty_like(tensor, shape))
            for name, tensor in slices:
                check_resizable(name, tensor)
                journal.set_data(tensor, sliced(tensor, wanted.kept[name]))
            changed = {id(tensor) for _, tensor, _ in changes} | {id(tensor) for _, tensor in slices}
            update_attributes(root, {}, changed, wanted.attributes, journal)
    except BaseException:
        journal.undo()
        raise
    flatten_again(root, changed)
    return journal


def _changes(root: nn.Module, shapes: Mapping[str, Shape]) -> list[tuple[str, Tensor, Shape]]:
    """Every tensor that gets another shape, once."""
    named = [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]
    tensors = {clean_name(name): tensor for name, tensor in named}
    missing = sorted(set(shapes) - set(tensors))
    if missing:
        raise ValueError(f"the model has no parameters or buffers {missing[:8]}; build it as the one that was shrunk")
    first: dict[int, str] = {}
    changes: list[tuple[str, Tensor, Shape]] = []
    for name, shape in shapes.items():
        tensor, shape = tensors[name], tuple(shape)
        other = first.setdefault(id(tensor), name)
        if shape != tuple(shapes[other]):
            raise ValueError(
                f"the model ties {other!r} and {name!r}, which are to be {tuple(shapes[other])} and {shape}"
            )
        if other != name or shape == tuple(tensor.shape):
            continue
        if len(shape) != tensor.dim() or min(shape, default=1) < 1:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} and cannot become {shape}")
        changes.append((name, tensor, shape))
    return changes


def _slices(tensors: Mapping[str, Tensor], wanted: Structure) -> list[tuple[str, Tensor]]:
    """The tensors outside of every state dict that still have their full shape."""
    found: list[tuple[str, Tensor]] = []
    for name, axes in wanted.kept.items():
        tensor, before = tensors.get(name), (wanted.before or {}).get(name)
        if tensor is None or any(dim >= tensor.dim() for dim in axes):
            raise ValueError(f"the model has no buffer {name!r} like the one that was shrunk")
        if all(tensor.shape[dim] == len(positions) for dim, positions in axes.items()) and before != tensor.shape:
            continue
        reach = all(max(positions) < tensor.shape[dim] for dim, positions in axes.items())
        if (before is not None and tuple(tensor.shape) != before) or not reach:
            raise ValueError(f"buffer {name} has shape {tuple(tensor.shape)}; the one that was shrunk had {before}")
        found.append((name, tensor))
    return found


def _beyond_shapes(name: str, module: nn.Module) -> list[str]:
    row, own = derivation(module), vars(module)
    told = set[str]() if row is None else set(row(Resized(name, module, {}, {})))
    keys = [key for key in _UNTOLD if own.get(key) is not None and (key not in told or key in _NEVER_TOLD)]
    if isinstance(module, nn.RMSNorm) and module.eps is not None:
        keys.append("eps")  # scaled with the width where channels are removed exactly
    if type(module).__module__.startswith("torch.nn.") or next(module.parameters(), None) is None:
        return keys
    # A class of the user's: its numbers may be anything, but for those of the torch class it is built on.
    known = {*told, *keys, *(key for kind in type(module).__mro__ for key in getattr(kind, "__constants__", ()))}
    return keys + [key for key, value in own.items() if key not in known and key[0] != "_" and _is_plain(value)]


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return bool(value) and all(type(entry) is int for entry in value)
    return type(value) in (int, float)


def _plain(value: Any) -> Value:
    return tuple(value) if isinstance(value, (tuple, list)) else value


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
