"""Parameter masks at one bit per weight, and the pointer tables that apply them in one native call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, final

from torch import Tensor

from secateur import native
from secateur.model.sharding import WHOLE, Part, local, part_of, take

__all__ = ["PackedMasks", "pack_units", "unpack_units"]


@final
class PackedMasks:
    """Bit-packed masks of named parameters.

    Args:
        masks: name -> bool mask of the parameter's shape.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self.bits = {name: native.pack_bits(mask) for name, mask in masks.items()}
        self._shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
        self._names = tuple(masks)
        self._sets: dict[tuple[Part, ...], native.MaskSet] = {}
        self._whole: native.MaskSet | None = None

    def unpack(self, name: str) -> Tensor:
        """The bool mask of a parameter."""
        shape = self._shapes[name]
        return native.unpack_bits(self.bits[name], prod(shape)).view(shape)

    def count(self, name: str) -> int:
        """How many weights of a parameter are kept."""
        return native.count_bits(self.bits[name], prod(self._shapes[name]))

    def zero(self, tensors: Sequence[Tensor | None]) -> None:
        """Zero the removed elements of one tensor per name, in the order of the names; None is left out."""
        if all(type(tensor) in WHOLE for tensor in tensors):  # the path of every step of plain training
            if self._whole is None:
                self._whole = self._table((None,) * len(self._names))
            self._whole.apply(tensors)
            return
        parts = tuple(None if tensor is None else part_of(tensor) for tensor in tensors)
        self._table(parts).apply([None if tensor is None else local(tensor) for tensor in tensors])

    def _table(self, parts: tuple[Part, ...]) -> native.MaskSet:
        """The pointer table for these shards, one for all tensors that are whole."""
        table = self._sets.get(parts)
        if table is None:
            bits: list[Tensor] = []
            shapes: list[tuple[int, ...]] = []
            for name, part in zip(self._names, parts, strict=True):
                piece = None if part is None else take(self.unpack(name), part)
                bits.append(self.bits[name] if piece is None else native.pack_bits(piece))
                shapes.append(self._shapes[name] if piece is None else tuple(piece.shape))
            table = self._sets[parts] = native.MaskSet(bits, shapes)
        return table


def pack_units(unit_masks: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Unit masks for a checkpoint: key -> bits and shape."""
    return {key: {"bits": native.pack_bits(mask), "shape": list(mask.shape)} for key, mask in unit_masks.items()}


def unpack_units(packed: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The inverse of ``pack_units``."""
    return {
        key: native.unpack_bits(entry["bits"], prod(entry["shape"])).view(entry["shape"])
        for key, entry in packed.items()
    }
