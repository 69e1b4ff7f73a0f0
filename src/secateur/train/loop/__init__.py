"""The plain training loop: entered, left, watched and resumed anywhere."""

from __future__ import annotations

from secateur.train.loop.fit import fit
from secateur.train.loop.fitted import EpochRow, Fitted, Moment
from secateur.train.loop.snapshot import Snapshot
from secateur.train.loop.training import Training

__all__ = ["EpochRow", "Fitted", "Moment", "Snapshot", "Training", "fit"]
