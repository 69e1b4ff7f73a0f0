"""What was measured, and what a search tried, as frozen records: drawn by ``report``, stored by anyone.

Every record turns into plain JSON with ``to_record()`` and comes back with ``from_record()``; unknown keys are
refused.
"""

from __future__ import annotations

from secateur.records.base import Jsonable
from secateur.records.explanation import Explanation, LayerLine
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
from secateur.records.rivals import RivalRow, Rivals, Status
from secateur.records.roofs import Bandwidth, Roofs
from secateur.records.trials import Rival, Score, Trial, Trials

__all__ = [
    "Accuracy",
    "Agreement",
    "Bandwidth",
    "Energy",
    "Environment",
    "Explanation",
    "Jsonable",
    "Latency",
    "LayerLine",
    "LayerRow",
    "Record",
    "Report",
    "Rival",
    "RivalRow",
    "Rivals",
    "Roofs",
    "SchedulePoint",
    "Score",
    "Shares",
    "Side",
    "Sizes",
    "Status",
    "TrainingCost",
    "Trial",
    "Trials",
]
