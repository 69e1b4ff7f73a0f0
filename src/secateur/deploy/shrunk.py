"""What a file says about a model that was shrunk, and which models it may give its shapes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from secateur.model.removal.named import Shape
from secateur.model.removal.registry import find_mark
from secateur.model.removal.restore import Structure

__all__ = ["LARGER", "LOST_MARK", "may_become", "structure_in", "structure_to_save", "with_structure"]

_KEY = "secateur.shrunk"
"""In the file's record, beside what the user put there. Files of models that were never shrunk do not have it."""

LOST_MARK = (
    "if the file holds a shrunk model that was copied or pickled before it was saved, nothing in it says so: "
    "save it again with sc.save(model, path, shrunk=True)"
)
LARGER = "the file holds a shrunk model, so the module's tensors may be larger, but not smaller"


def structure_to_save(root: nn.Module, shrunk: bool | None) -> Structure | None:
    """What goes into the file: of a model known to be shrunk, or said to be.

    Args:
        root: an unwrapped module.
        shrunk: what the user says; None: go by what is known.

    Returns:
        Its structure; None for a model as its class builds it.
    """
    wanted = find_mark(root) is not None if shrunk is None else shrunk
    return Structure.of(root) if wanted else None


def with_structure(record: Mapping[str, Any] | None, structure: Structure | None) -> Mapping[str, Any] | None:
    """The record with the structure in it.

    Raises:
        ValueError: if the user's record has that key already.
    """
    if structure is None:
        return record
    if record is not None and _KEY in record:
        raise ValueError(
            f"record= has the key {_KEY!r}, which is needed for the shapes of this shrunk model; rename it"
        )
    return {**(record or {}), _KEY: structure.to_record()}


def structure_in(record: Mapping[str, Any] | None) -> Structure | None:
    """The structure that a file's record holds, if any.

    Raises:
        ValueError: if it is there but damaged.
    """
    return None if record is None or _KEY not in record else Structure.from_record(record[_KEY])


def may_become(name: str, target: Shape, stored: Shape, structure: Structure | None) -> bool:
    """Whether a tensor of the target may take the shape that is stored.

    Only a shrunk model's file changes shapes, and only from those that the model had before. Where those are
    not known, axes may shrink, never grow: the file of a shrunk model is no way to change a number of classes.

    Example:
        >>> shrunk = Structure({"w": (8, 4)})
        >>> may_become("w", (8, 4), (5, 4), shrunk), may_become("w", (9, 4), (5, 4), shrunk)
        (True, False)
        >>> may_become("w", (8, 4), (5, 4), None)
        False
    """
    if target == stored:
        return True
    if structure is None or len(target) != len(stored):
        return False
    if structure.before is None:
        return all(new <= old for new, old in zip(stored, target, strict=True))
    return target == structure.before.get(name)
