"""What a training run took: wall time, core-seconds, and joules where the machine tells."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import final

from secateur.measure.energy import EnergyMeter
from secateur.records import TrainingCost

__all__ = ["TrainingMeter"]


@final
class TrainingMeter:
    """Wall seconds, core-seconds and joules between entry and exit of a ``with`` block.

    core-seconds = user + system time of this process and of its children. The operating system adds a
    child when it has ended and was waited for: loader workers that outlive the block are not in it.

    Args:
        root: where energy counters are looked for, as for ``find_counters``.

    Attributes:
        cost: the record, after the block.
        reason: why ``cost.joules`` is None, else None.

    Example:
        >>> with TrainingMeter() as meter:
        ...     total = sum(i * i for i in range(100_000))
        >>> meter.cost.wall_s > 0, meter.cost.core_s >= 0
        (True, True)
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self._energy = EnergyMeter(root)
        self._cost: TrainingCost | None = None
        self._start = (0.0, 0.0)

    @property
    def cost(self) -> TrainingCost:
        """The record.

        Raises:
            ValueError: before the block has ended.
        """
        if self._cost is None:
            raise ValueError("TrainingMeter.cost is known when the with block has ended")
        return self._cost

    @property
    def reason(self) -> str | None:
        """Why there are no joules."""
        return self._energy.reason

    def __enter__(self) -> TrainingMeter:
        self._cost = None
        self._energy.__enter__()
        self._start = (time.perf_counter(), _core_seconds())
        return self

    def __exit__(self, *failure: object) -> None:
        wall, core = time.perf_counter() - self._start[0], _core_seconds() - self._start[1]
        self._energy.__exit__(*failure)
        self._cost = TrainingCost(wall_s=wall, core_s=core, joules=self._energy.joules)


def _core_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
