"""What the tracer knows of a tensor: which slice of which parameter each of its elements stands for.

A *plane* gives every element of a tensor an integer id. Elements with one id live and die together. Ids are
stored with size 1 along every axis on which they do not vary, so a plane of an activation ``[B, C, H, W]`` holds
``C`` numbers. A parameter has one plane per axis; most activations have one plane in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["CONSTANT", "FIRST_ID", "FROZEN", "Kind", "Plane", "Traced"]

CONSTANT = 0
"""Id of an element that no slice stands for and that couples nothing: zeros that were padded on, say."""
FROZEN = 1
"""Id of an element whose place must stay."""
FIRST_ID = 2

Kind: TypeAlias = Literal["parameter", "activation", "frozen", "constant"]
"""``parameter``: computed from parameters and buffers alone; ``frozen``: an input, or nothing is known of its
slices; ``constant``: made inside the model."""


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """Ids of the elements of a tensor of ``shape``; ``ids`` has size 1 where they do not vary."""

    shape: tuple[int, ...]
    ids: Tensor

    @staticmethod
    def of(full: Tensor) -> Plane:
        """The plane of a whole tensor of ids."""
        ids, open_ = full, list[int]()
        for axis, (size, stride) in enumerate(zip(full.shape, full.stride(), strict=True)):
            if size > 1 and stride == 0:  # before any comparison, which would run over all copies
                ids = ids.narrow(axis, 0, 1)
            elif size > 1:
                open_.append(axis)
        for axis in open_:
            first, second = ids.narrow(axis, 0, 1), ids.narrow(axis, 1, 1)
            # Where ids vary, two places mostly show it: the rest need not be read.
            if torch.equal(first, second) and bool((ids == first).all()):
                ids = first
        return Plane(tuple(full.shape), ids)

    @property
    def full(self) -> Tensor:
        """An id for every element, without memory of its own."""
        return self.ids.expand(self.shape)

    @property
    def axes(self) -> frozenset[int]:
        """The axes along which ids vary."""
        return frozenset(axis for axis, size in enumerate(self.ids.shape) if size > 1)

    def move(self, function: Callable[[Tensor], Tensor]) -> Plane:
        """The plane after an operator that moves elements around."""
        return Plane.of(function(self.full))

    def aligned(self, shape: Sequence[int]) -> Plane:
        """The plane as it is broadcast to ``shape``; axes of size 1 stay so."""
        missing = len(shape) - len(self.shape)
        return Plane(tuple(shape), self.ids.reshape((1,) * missing + tuple(self.ids.shape)))

    def vector(self, axis: int) -> Tensor:
        """Ids along one axis, of a plane that varies along no other."""
        assert self.axes <= {axis}
        return self.ids.expand([n if i == axis else 1 for i, n in enumerate(self.shape)]).reshape(-1)

    def matrix(self, axis: int) -> Tensor:
        """Ids ``[places on the other axes on which they vary, size of axis]``."""
        sizes = enumerate(zip(self.shape, self.ids.shape, strict=True))
        wide = self.ids.expand([whole if place == axis else varying for place, (whole, varying) in sizes])
        return wide.movedim(axis, -1).reshape(-1, self.shape[axis])

    @staticmethod
    def along(axis: int, shape: Sequence[int], vector: Tensor) -> Plane:
        """The plane of a tensor whose ids vary along one axis."""
        ids = vector.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        if shape[axis] > 1 and bool((vector == vector[0]).all()):
            ids = ids.narrow(axis, 0, 1)
        return Plane(tuple(shape), ids)


@dataclass(frozen=True, slots=True)
class Traced:
    """What is known of one tensor.

    Attributes:
        kind: where its values come from.
        planes: none where no slice is known; several where its axes stand for different slices.
        data: computed from floating-point inputs, so that a branch on it is a branch on data.
    """

    kind: Kind
    planes: tuple[Plane, ...] = ()
    data: bool = False

    def moved(self, function: Callable[[Tensor], Tensor]) -> Traced:
        """The same knowledge after elements were moved."""
        return Traced(self.kind, tuple(plane.move(function) for plane in self.planes), self.data)

    def varying(self, axis: int) -> list[Plane]:
        """The planes whose ids vary along an axis."""
        return [plane for plane in self.planes if axis in plane.axes]
