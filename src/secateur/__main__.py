"""``python -m secateur`` is the ``secateur`` command."""

from __future__ import annotations

from secateur.cli import main

__all__: list[str] = []

main()
