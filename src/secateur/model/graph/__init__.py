"""Which slices of which tensors have to go together: found by running the model once."""

from __future__ import annotations

from secateur.model.graph.groups import Group, Groups, find_groups

__all__ = ["Group", "Groups", "find_groups"]
