"""Parameter masks at one bit per weight, and the pointer tables that apply them in one native call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor

from secateur import native
from secateur.model.mask_checks import numel
from secateur.model.sharding import Part, local, part_of, take

__all__ = ["PackedMasks"]


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
        self._sets: dict[tuple[tuple[int, Part], ...], native.MaskSet] = {}

    def unpack(self, name: str) -> Tensor:
        """The bool mask of a parameter."""
        shape = self._shapes[name]
        return native.unpack_bits(self.bits[name], numel(shape)).view(shape)

    def count(self, name: str) -> int:
        """How many weights of a parameter are kept."""
        return native.count_bits(self.bits[name], numel(self._shapes[name]))

    def zero(self, tensors: Sequence[Tensor | None]) -> None:
        """Zero the removed elements of one tensor per name, in the order of the names; None is left out."""
        present = tuple((i, part_of(tensor)) for i, tensor in enumerate(tensors) if tensor is not None)
        if present:
            self._table(present).apply([local(tensor) for tensor in tensors if tensor is not None])

    def _table(self, present: tuple[tuple[int, Part], ...]) -> native.MaskSet:
        """The pointer table for these tensors and shards, made once per combination."""
        table = self._sets.get(present)
        if table is None:
            bits: list[Tensor] = []
            shapes: list[tuple[int, ...]] = []
            for index, part in present:
                name = self._names[index]
                piece = None if part is None else take(self.unpack(name), part)
                bits.append(self.bits[name] if piece is None else native.pack_bits(piece))
                shapes.append(self._shapes[name] if piece is None else tuple(piece.shape))
            table = self._sets[present] = native.MaskSet(bits, shapes)
        return table
