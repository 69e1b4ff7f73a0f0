"""Sparse weights that run: packed layouts and the functions that multiply by them.

Float32 on the CPU, one thread, inference. ``pack`` puts a masked weight into a layout that a kernel of the core reads
from front to back; ``linear`` multiplies by it. ``BlockedCsr`` is the form for files.
"""

from __future__ import annotations

from secateur.runtime.canonical import BlockedCsr
from secateur.runtime.formats import Packed, pack
from secateur.runtime.layouts import LAYOUTS, Pieces
from secateur.runtime.linear import ACTIVATIONS, linear

__all__ = ["ACTIVATIONS", "LAYOUTS", "BlockedCsr", "Packed", "Pieces", "linear", "pack"]
