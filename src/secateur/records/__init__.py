"""What was measured, and what a search tried, as frozen records: drawn by ``report``, stored by anyone.

Every record turns into plain JSON with ``to_record()`` and comes back with ``from_record()``; unknown keys are
refused.
"""

from __future__ import annotations

from secateur.records.base import Jsonable
from secateur.records.measured import (
    Accuracy,
    Agreement,
    Energy,
    Environment,
    Latency,
    LayerRow,
    Record,
    Report,
    SchedulePoint,
    Shares,
    Side,
    Sizes,
    TrainingCost,
)
from secateur.records.trials import Rival, Score, Trial, Trials

__all__ = [
    "Accuracy",
    "Agreement",
    "Energy",
    "Environment",
    "Jsonable",
    "Latency",
    "LayerRow",
    "Record",
    "Report",
    "Rival",
    "SchedulePoint",
    "Score",
    "Shares",
    "Side",
    "Sizes",
    "TrainingCost",
    "Trial",
    "Trials",
]
