"""Physical removal: a record of what goes, carried out on the model and on its optimizer, and restored from a file."""

from __future__ import annotations

from secateur.model.removal.named import tensor_shapes
from secateur.model.removal.optimizers import slice_optimizer, sliced_state
from secateur.model.removal.plan import Removal
from secateur.model.removal.registry import carry_mark, find_removal, mark_shrunk
from secateur.model.removal.restore import restore_shapes, structure
from secateur.model.removal.tensors import remove

__all__ = [
    "Removal",
    "carry_mark",
    "find_removal",
    "mark_shrunk",
    "remove",
    "restore_shapes",
    "slice_optimizer",
    "sliced_state",
    "structure",
    "tensor_shapes",
]
