"""Named bool masks at one bit per element."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import final

import torch
from torch import Tensor

from secateur import native
from secateur.types import Layout, Tensors, Unit

__all__ = ["BitMasks", "all_kept"]


@final
class BitMasks(Mapping[str, Tensor]):
    """A mapping from names to bool masks that stand packed; every look-up unpacks a tensor of its own.

    Args:
        masks: (name, bool mask), packed as they come: a generator never has two of them at once.

    Attributes:
        bits: name -> uint8, as ``secateur.native`` packs them.
        shapes: name -> shape.

    Example:
        >>> masks = BitMasks([("a", torch.tensor([True, False])), ("b", torch.ones(2, 2, dtype=torch.bool))])
        >>> masks["a"].tolist(), masks["b"].shape, masks.count("b")
        ([True, False], torch.Size([2, 2]), 4)
    """

    def __init__(self, masks: Iterable[tuple[str, Tensor]] = ()) -> None:
        self.bits: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, mask in masks:
            self.bits[name] = native.pack_bits(mask.to(torch.bool))
            self.shapes[name] = tuple(mask.shape)

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        return native.unpack_bits(self.bits[name], prod(shape)).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)

    def count(self, name: str) -> int:
        """How many are True."""
        return native.count_bits(self.bits[name], prod(self.shapes[name]))

    def chosen(self, names: Iterable[str]) -> BitMasks:
        """Those of these names, in their order; nothing is copied."""
        made = BitMasks()
        for name in names:
            made.bits[name], made.shapes[name] = self.bits[name], self.shapes[name]
        return made

    def replaced(self, masks: Tensors) -> BitMasks:
        """These and others; where both have a name, the others'."""
        made = self.chosen(self)
        other = masks if isinstance(masks, BitMasks) else BitMasks(masks.items())
        made.bits.update(other.bits)
        made.shapes.update(other.shapes)
        return made


def all_kept(unit: Unit, layout: Layout) -> BitMasks:
    """Unit masks that remove nothing."""
    return BitMasks((name, torch.ones(unit.grid(key), dtype=torch.bool)) for name, key in layout.items())
