"""All layouts, whatever their numbers are; a word of a layout spans 1, 2 or 4 neighbouring inputs."""

from __future__ import annotations

from secateur.runtime.layouts import LAYOUTS, Layout
from secateur.runtime.pairs import PAIR_LAYOUTS
from secateur.runtime.quads import QUAD_LAYOUTS

__all__ = ["KNOWN"]

KNOWN: dict[str, Layout] = LAYOUTS | PAIR_LAYOUTS | QUAD_LAYOUTS
"""Name -> layout of every number format."""
