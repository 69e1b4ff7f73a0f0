"""Sparse weights that run: packed layouts and the functions that multiply by them.

On the CPU, one thread, inference, in float32, or with bf16 or int8 inside. ``pack`` puts a masked weight into a layout
that a kernel of the core reads from front to back; ``linear`` multiplies by it. ``BlockedCsr`` is the form for files.
"""

from __future__ import annotations

from secateur.runtime.canonical import BlockedCsr
from secateur.runtime.formats import Packed, pack
from secateur.runtime.layouts import LAYOUTS, Pieces
from secateur.runtime.linear import ACTIVATIONS, linear
from secateur.runtime.pairs import PAIR_LAYOUTS
from secateur.runtime.quads import QUAD_LAYOUTS

__all__ = [
    "ACTIVATIONS",
    "LAYOUTS",
    "PAIR_LAYOUTS",
    "QUAD_LAYOUTS",
    "BlockedCsr",
    "Packed",
    "Pieces",
    "linear",
    "pack",
]
