"""Learning rates that follow from those of a training: its last one, or all of them times a factor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn
from torch.optim import Optimizer

from secateur.train.loop.learning_rate import lr_at
from secateur.train.loop.lr_schedules import lr_factor
from secateur.train.loop.named_functions import function_text
from secateur.train.loop.training import OptimizerFunction, Training, make_optimizer

__all__ = ["first_rate", "last_rate", "scaled"]

_NOTHING = 1e-4
"""A last rate that is less than this share of the optimizer's own trains nothing."""


def first_rate(training: Training) -> float:
    """The optimizer's own learning rate, which schedules multiply.

    Example:
        >>> first_rate(Training(10, "sgd", lr_schedule="cosine"))
        0.1
    """
    return lr_at(replace(training, lr_schedule="constant"), 0, 1)


def last_rate(training: Training, total: int) -> float:
    """The learning rate at which a training ends; that is what fine-tuning goes on with.

    Args:
        training: with its schedule.
        total: its optimizer steps.

    Returns:
        The rate of the optimizer's first group.

    Raises:
        ValueError: if it is (almost) nothing, as of schedules that go down to zero.

    Example:
        >>> round(last_rate(Training(100, "sgd", lr=0.1, lr_schedule="steps(0.5, 0.75)"), 100), 6)
        0.001
    """
    chosen, first = training.lr_schedule, first_rate(training)
    named = isinstance(chosen, str) and ":" not in chosen
    last = first * lr_factor(chosen)(1.0) if named else lr_at(training, total - 1, total)  # pyright: ignore[reportArgumentType]
    if last <= _NOTHING * first:
        shown = repr(chosen) if isinstance(chosen, str) else function_text(chosen)
        raise ValueError(
            f"lr_schedule={shown} ends at a learning rate of {last:.2g}, where the optimizer's own is {first:.2g}: "
            f"fine-tuning at that rate changes nothing. Give lr=, e.g. lr={first / 10:.2g}, or how='rewind_lr', which "
            "takes the last epochs of the schedule again"
        )
    return last


def scaled(training: Training, factor: float) -> Training:
    """The same training with every learning rate times ``factor``.

    Args:
        training: by a named optimizer or a function.
        factor: above 0.

    Returns:
        Another training.

    Example:
        >>> scaled(Training(10, "sgd", lr=0.5), 0.5).lr
        0.25
    """
    if factor == 1:
        return training
    wanted = training.optimizer
    if isinstance(wanted, str) and ":" not in wanted:
        return replace(training, lr=first_rate(training) * factor)
    return replace(training, optimizer=_Scaled(function_text(wanted) if callable(wanted) else wanted, factor, wanted))


@dataclass(frozen=True)
class _Scaled:
    """An optimizer function whose rates are multiplied; the public attributes tell two apart."""

    optimizer: str
    factor: float
    _make: str | OptimizerFunction

    def __call__(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        made = make_optimizer(Training(1, self._make), parameters)
        for group in made.param_groups:
            group["lr"] = group["lr"] * self.factor
        return made
