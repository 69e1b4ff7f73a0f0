"""What one file holds, in memory: the whole (``Bundle``) and its table of contents (``Contents``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from secateur.types import Layout, Tensors

__all__ = ["Bundle", "Contents", "Expand", "TensorInfo"]

Expand: TypeAlias = Callable[[Tensors, Layout, str], Tensors]
"""``(unit masks, layout, unit spec) -> masks of the parameters' shapes``. The units live in a room
that this one does not know, so whoever reads a file with coarse units brings them. Raises ``ValueError``
for a spec, a grid or a layout that does not fit: they come from the file."""


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """The contents of a file.

    Attributes:
        tensors: name -> dense tensor, zeros where weights are removed. Two names of one tied
            tensor map to the same object.
        masks: name -> unit mask, bool in the unit's grid, True = kept. Names without a mask are dense. Masks of
            coupled groups go by the group's name, bool [units]; the layout's members are the tensors they mask.
        unit: the string that makes the unit again, ``"weight"``; None where there are no masks.
        layout: how the masked parameters, or groups, are laid out.
        plan: record of the choices that led here, plain JSON.
        record: whatever the writer wanted to say, plain JSON.

    Example:
        >>> Bundle({"bias": torch.zeros(3)}).masks
        {}
    """

    tensors: Tensors
    masks: Tensors = field(default_factory=dict[str, Tensor])
    unit: str | None = None
    layout: Layout = field(default_factory=dict)
    plan: Mapping[str, Any] | None = None
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One name of a file.

    ``dtype`` and ``shape`` are the dense tensor's; ``kept`` counts elements (None: no mask); ``stored_bytes``
    are those of its values and mask; ``tied_to`` is the name that it shares its tensor with, if any.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    kept: int | None
    stored_bytes: int
    tied_to: str | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """The checked header of a file: everything but the tensors."""

    file_bytes: int
    dense_bytes: int
    tensors: Mapping[str, TensorInfo]
    unit: str | None
    layout: Layout
    plan: Mapping[str, Any] | None
    record: Mapping[str, Any] | None
