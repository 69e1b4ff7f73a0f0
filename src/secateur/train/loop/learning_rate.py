"""The learning rates of an optimizer, driven by the clock of a training."""

from __future__ import annotations

import warnings
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from secateur.train.loop.lr_schedules import lr_factor
from secateur.train.loop.named_functions import function_from, function_text
from secateur.train.loop.training import Training, make_optimizer

__all__ = ["LearningRate", "lr_at"]


@final
class LearningRate:
    """Sets the learning rates before every step, as they are at that step of the training.

    Args:
        optimizer: whose groups are set; their rates now are the ones that the factor is of.
        training: its schedule.
        total: optimizer steps of the whole training; None where that is not known.

    Raises:
        ValueError: for a schedule that needs the total where it is not known, or that waits for a metric.
    """

    def __init__(self, optimizer: Optimizer, training: Training, total: int | None) -> None:
        self._optimizer, self._total = optimizer, total
        self._bases = [float(group["lr"]) for group in optimizer.param_groups]
        self._factor = None
        self._scheduler: LRScheduler | None = None
        self._waits = True
        chosen = training.lr_schedule
        if isinstance(chosen, str) and ":" not in chosen:
            self._factor = None if chosen == "constant" else lr_factor(chosen)
            if self._factor is not None:
                self._need_total(chosen)
            return
        function = function_from("lr_schedule", chosen) if isinstance(chosen, str) else chosen
        made = function(optimizer, self._need_total(function_text(function)))
        if not isinstance(made, LRScheduler) or isinstance(made, ReduceLROnPlateau):
            raise ValueError(
                f"lr_schedule={function_text(function)} made a {type(made).__name__}: an LRScheduler is needed that is "
                "stepped after every optimizer step, without a metric"
            )
        self._scheduler = made

    @property
    def now(self) -> float:
        """The rate of the first group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def forward(self, steps: int) -> None:
        """Go forward to a step without training; named schedules need no such thing."""
        for _ in range(0 if self._scheduler is None else steps):
            self.after()

    def before(self, step: int) -> None:
        """Set the rates of this step."""
        if self._factor is None:
            return
        assert self._total is not None
        factor = self._factor(step / self._total)
        for group, base in zip(self._optimizer.param_groups, self._bases, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor

    def after(self) -> None:
        """A step has been made."""
        if self._scheduler is None:
            return
        if not self._waits:
            self._scheduler.step()
            return
        with warnings.catch_warnings():  # it may come before the optimizer's first step: that is what start= asks for
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self._scheduler.step()
        self._waits = getattr(self._scheduler, "_step_count", 2) < 2

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state; empty for named schedules, which have none."""
        return {} if self._scheduler is None else self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a scheduler's state over."""
        if self._scheduler is not None and state:
            self._scheduler.load_state_dict(state)

    def _need_total(self, schedule: str) -> int:
        if self._total is None:
            raise ValueError(
                f"lr_schedule={schedule!r} needs to know how long the training is, and this loader has no len(): give "
                "a loader that has one, or lr_schedule='constant'"
            )
        return self._total


def lr_at(training: Training, step: int, total: int) -> float:
    """The learning rate with which a training makes a step.

    Args:
        training: its optimizer and its schedule.
        step: from 0 to ``total - 1``.
        total: optimizer steps of the whole training.

    Returns:
        The rate of the optimizer's first group.

    Raises:
        ValueError: for a step outside of the training.

    Example:
        >>> training = Training(100, "sgd", lr=0.1, lr_schedule="steps(0.5, 0.75)")
        >>> [round(lr_at(training, epoch, 100), 4) for epoch in (49, 50, 60, 75, 99)]
        [0.1, 0.01, 0.01, 0.001, 0.001]
    """
    if not 0 <= step < total:
        raise ValueError(f"step={step}: this training has the steps 0 to {total - 1}")
    optimizer = make_optimizer(training, [nn.Parameter(torch.zeros(1))])
    rate = LearningRate(optimizer, training, total)
    rate.forward(step)
    rate.before(step)
    return rate.now
