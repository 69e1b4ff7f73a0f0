"""Recipes of ``secateur compress``: read, checked as a whole, planned, and run in a folder named by the plan."""

from __future__ import annotations

__all__: list[str] = []
