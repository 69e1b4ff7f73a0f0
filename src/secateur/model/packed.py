"""Parameter masks at one bit per weight, and the pointer tables that apply them in one native call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, final

from torch import Tensor

from secateur import native
from secateur.core.bit_masks import BitMasks
from secateur.core.units import Weight
from secateur.model.sharding import WHOLE, Part, local, part_of, take
from secateur.types import Layout, Unit

__all__ = ["PackedMasks", "expanded", "pack_units", "unpack_units"]


@final
class PackedMasks:
    """Bit-packed masks of named parameters.

    Args:
        masks: name -> mask of the parameter's shape; the bits are shared.
    """

    def __init__(self, masks: BitMasks) -> None:
        self._masks, self.bits, self._shapes = masks, masks.bits, masks.shapes
        self._names = tuple(masks)
        self._sets: dict[tuple[Part, ...], native.MaskSet] = {}
        self._whole: native.MaskSet | None = None

    def unpack(self, name: str) -> Tensor:
        """The bool mask of a parameter."""
        return self._masks[name]

    def count(self, name: str) -> int:
        """How many weights of a parameter are kept."""
        return self._masks.count(name)

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


def expanded(unit: Unit, unit_masks: BitMasks, layout: Layout, names: Iterable[str]) -> BitMasks:
    """Parameter masks from unit masks, one parameter at a time; the masks of single weights are their own.

    Args:
        unit: what is removed together.
        unit_masks: of every key that has a part in the parameters.
        layout: of these keys.
        names: of the parameters, in the order wanted.
    """
    if unit == Weight():
        return unit_masks.chosen(names)
    if any(layout[key].kind == "group" for key in unit_masks):
        masks = unit.expand(unit_masks, layout)
        return BitMasks((name, masks[name]) for name in names)
    return BitMasks((name, unit.expand({name: unit_masks[name]}, layout)[name]) for name in names)


def pack_units(unit_masks: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Unit masks for a checkpoint: key -> bits and shape."""
    return {key: {"bits": native.pack_bits(mask), "shape": list(mask.shape)} for key, mask in unit_masks.items()}


def unpack_units(packed: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The inverse of ``pack_units``."""
    return {
        key: native.unpack_bits(entry["bits"], prod(entry["shape"])).view(entry["shape"])
        for key, entry in packed.items()
    }
