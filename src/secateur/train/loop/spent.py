"""What a training took, over all the processes that it ran in."""

from __future__ import annotations

from typing import final

from secateur.measure.cost import TrainingMeter
from secateur.records import TrainingCost

__all__ = ["Spent"]


@final
class Spent:
    """A meter that can be read while it runs, and that adds to what was spent before.

    Attributes:
        before: what laps that are over took.
    """

    def __init__(self) -> None:
        self.before = TrainingCost(0.0, 0.0, None)
        self._first = True
        self._meter = TrainingMeter()

    def __enter__(self) -> None:
        self._first = self.before == TrainingCost(0.0, 0.0, None)
        self._meter.__enter__()

    def __exit__(self, *failure: object) -> None:
        self._meter.__exit__(*failure)
        lap, before = self._meter.cost, self.before
        joules = lap.joules
        if not self._first:
            joules = None if lap.joules is None or before.joules is None else lap.joules + before.joules
        self.before, self._first = TrainingCost(before.wall_s + lap.wall_s, before.core_s + lap.core_s, joules), False

    def so_far(self) -> TrainingCost:
        """What it took up to now; goes on counting."""
        self.__exit__(None, None, None)
        self._meter.__enter__()
        return self.before
