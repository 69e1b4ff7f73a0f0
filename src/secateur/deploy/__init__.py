"""What leaves the house: files that load again."""

from __future__ import annotations

from secateur.deploy.files import load, save

__all__ = ["load", "save"]
