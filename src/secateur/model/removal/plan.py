"""What is removed from which tensor, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import nn

from secateur.model.removal.named import Shape, tensor_shapes

__all__ = ["Kept", "Removal", "Value"]

Kept: TypeAlias = Mapping[str, Mapping[int, tuple[int, ...]]]
"""Tensor name -> axis -> positions in the old tensor that stay, in their new order."""

Value: TypeAlias = "int | float | tuple[int, ...]"

_MOST_POSITIONS = 1 << 27
"""A record may come from anywhere, and a run of two numbers can name any count of positions."""


@dataclass(frozen=True)
class Removal:
    """Everything that makes the small model out of the large one.

    Attributes:
        kept: clean first tensor name (parameter or buffer) -> axis -> the positions that stay, in their new order.
        attributes: module name -> attribute -> new value, for what the types of the modules do not tell.
        scales: tensor name -> factor that is multiplied in after slicing.

    Example:
        >>> removal = Removal({"weight": {0: (0, 2)}, "bias": {0: (0, 2)}})
        >>> removal.shapes(nn.Linear(4, 3))
        {'weight': ((3, 4), (2, 4)), 'bias': ((3,), (2,))}
        >>> Removal.from_record(removal.to_record()) == removal
        True
    """

    kept: Kept = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Nothing is sliced, set or scaled."""
        return not (any(self.kept.values()) or any(self.attributes.values()) or self.scales)

    def shapes(self, model: nn.Module | Mapping[str, Shape]) -> dict[str, tuple[Shape, Shape]]:
        """Shape before and after, for every tensor that is sliced.

        Args:
            model: the model before the removal, or the shapes of its tensors.

        Returns:
            Name -> (old shape, new shape), in the order of ``kept``.

        Raises:
            ValueError: for a tensor or an axis that the model does not have.
        """
        before = tensor_shapes(model) if isinstance(model, nn.Module) else model
        changed: dict[str, tuple[Shape, Shape]] = {}
        for name, axes in self.kept.items():
            if name not in before:
                raise ValueError(f"the removal slices {name!r}, which is no parameter or buffer of the model")
            new = list(before[name])
            for dim, positions in axes.items():
                if not 0 <= dim < len(new):
                    raise ValueError(f"the removal slices axis {dim} of {name!r}, whose shape is {before[name]}")
                new[dim] = len(positions)
            if axes:
                changed[name] = (tuple(before[name]), tuple(new))
        return changed

    def then(self, other: Removal) -> Removal:
        """This removal and after it ``other``, whose positions count in the smaller model, as one.

        ``remove(m, a); remove(m, b)`` and ``remove(m, a.then(b))`` make the same model. Where both set an
        attribute, ``other`` wins; factors multiply.

        Args:
            other: the later removal.

        Returns:
            The removal from the first model to the last.

        Raises:
            ValueError: if ``other`` keeps a position that this removal did not leave.

        Example:
            >>> Removal({"w": {0: (1, 3, 5)}}).then(Removal({"w": {0: (2, 0)}})).kept
            {'w': {0: (5, 1)}}
        """
        kept = {name: dict(axes) for name, axes in self.kept.items()}
        for name, axes in other.kept.items():
            mine = kept.setdefault(name, {})
            for dim, positions in axes.items():
                mine[dim] = _picked(mine[dim], positions, f"axis {dim} of {name!r}") if dim in mine else positions
        attributes = {name: dict(values) for name, values in self.attributes.items()}
        for name, values in other.attributes.items():
            attributes[name] = {**attributes.get(name, {}), **values}
        scales = dict(self.scales)
        for name, factor in other.scales.items():
            scales[name] = scales.get(name, 1.0) * factor
        return Removal(kept, attributes, scales)

    def to_record(self) -> dict[str, Any]:
        """Plain JSON. The axes of a group share one list of runs ``[start, stop, start, stop, ...]``.

        Example:
            >>> Removal({"w": {0: (0, 1, 2, 5)}, "b": {0: (0, 1, 2, 5)}}).to_record()
            {'positions': [[0, 3, 5, 6]], 'kept': {'w': {'0': 0}, 'b': {'0': 0}}, 'attributes': {}, 'scales': {}}
        """
        known: dict[tuple[int, ...], int] = {}
        kept = {
            name: {str(dim): known.setdefault(tuple(positions), len(known)) for dim, positions in axes.items()}
            for name, axes in self.kept.items()
        }
        return {
            "positions": [_runs(positions) for positions in known],
            "kept": kept,
            "attributes": {
                module: {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
                for module, values in self.attributes.items()
            },
            "scales": dict(self.scales),
        }

    @classmethod
    def from_record(cls, record: object) -> Removal:
        """The removal that ``to_record`` described.

        Args:
            record: what JSON gave back; nothing about it is taken for granted.

        Returns:
            The removal.

        Raises:
            ValueError: saying what in the record is not as it should be.
        """
        tables = _table(record, "the record")
        if set(tables) != {"positions", "kept", "attributes", "scales"}:
            raise ValueError(f"a removal's record has positions, kept, attributes and scales; this has {list(tables)}")
        if not isinstance(tables["positions"], list):
            raise ValueError("a removal's record: positions is not a list")
        positions = _positions(tables["positions"])
        kept = {
            name: {_axis(dim): _at(positions, index) for dim, index in _table(axes, f"kept of {name}").items()}
            for name, axes in _table(tables["kept"], "kept").items()
        }
        attributes = {
            module: {key: _value(value, key) for key, value in _table(values, f"attributes of {module}").items()}
            for module, values in _table(tables["attributes"], "attributes").items()
        }
        scales = {
            name: float(_value(factor, name, float)) for name, factor in _table(tables["scales"], "scales").items()
        }
        return cls(kept, attributes, scales)


def _picked(first: Sequence[int], then: Sequence[int], where: str) -> tuple[int, ...]:
    outside = [position for position in then if not 0 <= position < len(first)]
    if outside:
        raise ValueError(f"{where}: the later removal keeps position {outside[0]}, the earlier one leaves {len(first)}")
    return tuple(first[position] for position in then)


def _runs(positions: Sequence[int]) -> list[int]:
    """Ends of the runs of consecutive positions: ``(0, 1, 2, 5)`` is ``[0, 3, 5, 6]``."""
    runs: list[int] = []
    for position in positions:
        if runs and runs[-1] == position:
            runs[-1] = position + 1
        else:
            runs += [position, position + 1]
    return runs


def _positions(lists: list[object]) -> list[tuple[int, ...]]:
    """Every list of runs, spelled out."""
    total, found = 0, list[tuple[int, ...]]()
    for runs in lists:
        ends: list[Any] = runs if isinstance(runs, list) else [None]
        pairs = list(zip(ends[::2], ends[1::2], strict=False))
        if len(ends) % 2 or any(type(end) is not int or end < 0 for end in ends) or any(a >= b for a, b in pairs):
            raise ValueError("a removal's record: positions are runs [start, stop, start, stop, ...], start < stop")
        total += sum(stop - start for start, stop in pairs)
        if total > _MOST_POSITIONS:
            raise ValueError(f"a removal's record names more than {_MOST_POSITIONS} positions")
        found.append(tuple(position for start, stop in pairs for position in range(start, stop)))
    return found


def _table(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a removal's record: {what} is a {type(value).__name__}, not a table")
    return value


def _axis(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 3):
        raise ValueError(f"a removal's record: {text!r} is no axis of a tensor")
    return int(text)


def _at(positions: list[tuple[int, ...]], index: object) -> tuple[int, ...]:
    if type(index) is not int or not 0 <= index < len(positions):
        raise ValueError(f"a removal's record: there is no list of positions {index!r}")
    return positions[index]


def _value(value: object, what: str, kind: type = object) -> Any:
    if isinstance(value, list) and kind is object and all(type(entry) is int for entry in value):
        return tuple(value)
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    raise ValueError(f"a removal's record: {what} is {value!r}; integers, floats and lists of integers can be set")
