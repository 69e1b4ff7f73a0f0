"""Knows time: plans, one-shot pruning, and the pruner that prunes while you train."""

from __future__ import annotations

from secateur.train.plan import Plan
from secateur.train.prune import prune, score
from secateur.train.pruner import Pruner
from secateur.train.reconstruct import Reconstruction, reconstruct

__all__ = ["Plan", "Pruner", "Reconstruction", "prune", "reconstruct", "score"]
