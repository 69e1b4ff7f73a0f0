"""What a user takes along: files that need PyTorch alone, and what writes them."""

from __future__ import annotations

__all__: list[str] = []
