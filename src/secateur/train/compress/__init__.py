"""From a model and a goal to a smaller model: candidates, what they cost, the search, the rivals, the page."""

from __future__ import annotations

from secateur.train.compress.compress import compress
from secateur.train.compress.goal import Goal
from secateur.train.compress.result import Compressed
from secateur.train.compress.stage import Stage

__all__ = ["Compressed", "Goal", "Stage", "compress"]
