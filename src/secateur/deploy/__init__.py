"""What leaves the house: files that load again."""

from __future__ import annotations

from secateur.deploy.files import load, load_bundle, save

__all__ = ["load", "load_bundle", "save"]
