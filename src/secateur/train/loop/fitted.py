"""What a training tells: moments on the way, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from torch import nn
from torch.optim import Optimizer

from secateur.records import TrainingCost
from secateur.text import three
from secateur.train.loop.snapshot import Snapshot

__all__ = ["Callback", "EpochRow", "Fitted", "Metric", "Moment", "Progress"]


class Progress(Protocol):
    """Told how many optimizer steps have been made."""

    def __call__(self, steps: int = 1) -> None:
        """So many more."""
        ...


@dataclass(frozen=True)
class Moment:
    """Where a training stands when a callback is called.

    Attributes:
        at: ``"step"`` after an optimizer step, ``"epoch"`` at the end of an epoch.
        step: optimizer steps of the training so far, this one included.
        epoch: epochs that are complete.
        loss: of the step, or the mean of the epoch.
        lr: of the last step.
        metric: on ``valid``, at the end of an epoch; else None.
        model: as it is.
        optimizer: as it is.
    """

    at: Literal["step", "epoch"]
    step: int
    epoch: int
    loss: float
    lr: float
    metric: float | None
    model: nn.Module
    optimizer: Optimizer


Callback: TypeAlias = Callable[[Moment], object]
Metric: TypeAlias = Callable[[nn.Module, Any], float]
"""``metric(model, valid) -> float``, larger is better."""


@dataclass(frozen=True)
class EpochRow:
    """One complete epoch: how many are, the clock, mean loss, the last learning rate, metric on ``valid``, seconds."""

    epoch: int
    step: int
    loss: float
    lr: float
    metric: float | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Fitted:
    """What came of a training.

    Attributes:
        steps: optimizer steps made, also those before a run was resumed; not those that ``start`` left out.
        history: one row per complete epoch.
        snapshots: step -> what was kept of it.
        stopped_early: whether patience ended it.
        cost: seconds, core-seconds and joules, also those before a run was resumed.
    """

    steps: int
    history: tuple[EpochRow, ...]
    snapshots: dict[int, Snapshot] = field(repr=False)
    stopped_early: bool
    cost: TrainingCost

    def __str__(self) -> str:
        measured = any(row.metric is not None for row in self.history)
        lines = [f"{'epoch':>5} {'step':>8} {'loss':>9} {'lr':>9}" + (f" {'metric':>8}" if measured else "")]
        for row in self.history:
            metric = f" {three(row.metric):>8}" if measured else ""
            lines.append(f"{row.epoch:>5} {row.step:>8} {three(row.loss):>9} {row.lr:>9.3g}{metric}")
        end = ", stopped early" if self.stopped_early else ""
        return "\n".join([*lines, f"{self.steps} steps in {three(self.cost.wall_s)} s{end}"])
