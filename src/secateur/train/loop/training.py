"""How a network is trained: the frozen record of all choices of a training."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from secateur.core.names import lookup, parse_spec
from secateur.model.batches import LossFunction, StepFunction
from secateur.train.loop.lr_schedules import lr_factor
from secateur.train.loop.named_functions import function_from, function_record, function_text

__all__ = ["OPTIMIZERS", "LrScheduleFunction", "OptimizerEntry", "OptimizerFunction", "Training", "make_optimizer"]

OptimizerFunction: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Makes an optimizer of the parameters."""

LrScheduleFunction: TypeAlias = Callable[[Optimizer, int], LRScheduler]
"""``(optimizer, total_steps) -> LRScheduler``, stepped once after every optimizer step."""


@dataclass(frozen=True)
class OptimizerEntry:
    """A row of ``OPTIMIZERS``: the class, its learning rate where none is given, and what else is set."""

    make: Callable[..., Optimizer]
    lr: float
    options: Mapping[str, Any]


OPTIMIZERS: dict[str, OptimizerEntry] = {
    "sgd": OptimizerEntry(torch.optim.SGD, 0.1, {"momentum": 0.9}),
    "adam": OptimizerEntry(torch.optim.Adam, 1e-3, {}),
    "adamw": OptimizerEntry(torch.optim.AdamW, 1e-3, {}),
}
"""Name -> optimizer. Options are given as in ``"sgd(momentum=0.0)"``."""

_FUNCTIONS = ("optimizer", "lr_schedule", "loss", "step")


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Args:
        epochs: passes over the data.
        optimizer: ``"sgd"`` (momentum 0.9), ``"adam"``, ``"adamw"``, also with options, ``"sgd(momentum=0.0)"``; or a
            function of the parameters, e.g. ``partial(torch.optim.SGD, lr=0.1)``.
        lr: learning rate of a named optimizer; None: 0.1 for sgd, 0.001 for adam and adamw.
        weight_decay: of a named optimizer.
        lr_schedule: a name of ``LR_SCHEDULES``, e.g. ``"cosine"`` or ``"steps(0.5, 0.75, factor=0.1)"``, milestones as
            shares of training; or a function ``(optimizer, total_steps) -> LRScheduler``.
        batch_size: samples, where the data is a pair of tensors; a loader has its own.
        loss: ``loss(output, labels)``.
        step: ``step(model, batch) -> loss`` for batches of another shape.
        clip: largest norm of all gradients together.
        amp: ``"bf16"`` or ``"fp16"``: the forward pass in mixed precision.
        accumulate: batches per optimizer step, each with the same weight.
        patience: stop after so many epochs without a better metric; None: never.
        seed: of the data order and of dropout.

    Raises:
        ValueError: for a value outside its range, an unknown name, or choices that do not go together.

    Example:
        >>> training = Training(10, "sgd", lr=0.1, lr_schedule="steps(0.5, 0.75)", loss=nn.functional.cross_entropy)
        >>> Training.from_record(training.to_record()) == training
        True
    """

    epochs: int
    optimizer: str | OptimizerFunction = "adam"
    lr: float | None = None
    weight_decay: float = 0.0
    lr_schedule: str | LrScheduleFunction = "constant"
    batch_size: int = 64
    loss: LossFunction | None = None
    step: StepFunction | None = None
    clip: float | None = None
    amp: Literal["bf16", "fp16"] | None = None
    accumulate: int = 1
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("loss", "step"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, function_from(name, value))
            elif value is not None and not callable(value):
                raise ValueError(f"{name}={value!r}: give a function, e.g. loss=torch.nn.functional.cross_entropy")
        for name in ("epochs", "batch_size", "accumulate"):
            _check_count(name, getattr(self, name))
        if self.patience is not None:
            _check_count("patience", self.patience)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"seed={self.seed!r}: a whole number is needed")
        _check_number("lr", self.lr, above_zero=True)
        _check_number("clip", self.clip, above_zero=True)
        _check_number("weight_decay", self.weight_decay, above_zero=False)
        if self.amp not in (None, "bf16", "fp16"):
            raise ValueError(f"amp={self.amp!r}; known are 'bf16', 'fp16' and None")
        self._check_optimizer()
        if isinstance(self.lr_schedule, str):
            if ":" in self.lr_schedule:
                function_from("lr_schedule", self.lr_schedule)
            else:
                lr_factor(self.lr_schedule)
        elif not callable(self.lr_schedule):
            raise ValueError(f"lr_schedule={self.lr_schedule!r}: a name or a function (optimizer, total_steps)")

    def _check_optimizer(self) -> None:
        if isinstance(self.optimizer, str) and ":" not in self.optimizer:
            _options(self.optimizer)
            return
        if isinstance(self.optimizer, str):
            function_from("optimizer", self.optimizer)
        elif not callable(self.optimizer):
            raise ValueError(f"optimizer={self.optimizer!r}: give a name ({', '.join(OPTIMIZERS)}) or a function")
        if self.lr is not None or self.weight_decay != 0.0:
            raise ValueError(
                f"lr={self.lr} and weight_decay={self.weight_decay} are of named optimizers; a function brings "
                "its own: optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=1e-4)"
            )

    # -- record -----------------------------------------------------------------------------------

    def to_record(self) -> dict[str, Any]:
        """Plain JSON: every choice by its name.

        Raises:
            ValueError: for a function without an importable name: such a training works, but cannot be written down.
        """
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in _FUNCTIONS:
            if record[name] is not None and not isinstance(record[name], str):
                record[name] = function_record(name, record[name])
        return record

    def describe(self) -> dict[str, str]:
        """Every choice as text, also those that cannot be written down; to tell trainings apart."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        functions = {name for name in _FUNCTIONS if callable(values[name])}
        return {name: function_text(v) if name in functions else str(v) for name, v in values.items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Training:
        """The inverse of ``to_record``; a function is found again only if its module is imported already.

        Raises:
            ValueError: for a key that trainings do not have, and for whatever a training refuses.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in record:
            if key not in known:
                raise ValueError(f"a training has no {key!r}; it has {', '.join(known)}")
        return cls(**record)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name this training; equal trainings have equal digests."""
        numbers = {k: None if (v := getattr(self, k)) is None else float(v) for k in ("lr", "weight_decay", "clip")}
        text = json.dumps({**self.to_record(), **numbers}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_optimizer(training: Training, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer that a training asks for.

    Args:
        training: says which.
        parameters: what it moves.

    Returns:
        A new optimizer.

    Raises:
        ValueError: for an unknown name or option, and for one that calls the model itself, such as LBFGS.

    Example:
        >>> make_optimizer(Training(1, "sgd(momentum=0.5)"), nn.Linear(2, 2).parameters()).defaults["momentum"]
        0.5
    """
    wanted = training.optimizer
    if isinstance(wanted, str):
        found = (
            function_from("optimizer", wanted)(parameters) if ":" in wanted else _named(training, wanted, parameters)
        )
    else:
        found = wanted(parameters)
    if not isinstance(found, Optimizer):
        raise ValueError(f"optimizer={function_text(wanted)} made a {type(found).__name__}, not a torch optimizer")
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(found).__name__} calls the model several times a step (it needs a closure), which this loop does "
            "not do: take 'sgd', 'adam', 'adamw' or another first-order optimizer, or write the loop yourself"
        )
    return found


def _named(training: Training, spec: str, parameters: Iterable[nn.Parameter]) -> Optimizer:
    row, options = _options(spec)
    lr = row.lr if training.lr is None else training.lr
    return row.make(parameters, lr=lr, weight_decay=training.weight_decay, **{**row.options, **options})


def _options(spec: str) -> tuple[OptimizerEntry, dict[str, Any]]:
    """The row of a spec and the options in it; makes no optimizer, for the first one of a process takes seconds."""
    name, arguments, options = parse_spec(spec)
    row = lookup("optimizer", OPTIMIZERS, name)
    if arguments or {"lr", "weight_decay"} & set(options):
        raise ValueError(
            f"optimizer={spec!r}: write options with their names, as in 'sgd(momentum=0.0)'; lr= and weight_decay= are "
            "choices of the training itself"
        )
    known = [key for key in inspect.signature(row.make).parameters if key not in ("params", "lr", "weight_decay")]
    wrong = [key for key in options if key not in known]
    if wrong:
        raise ValueError(f"optimizer={spec!r}: {name} has no {wrong[0]!r}; it has {', '.join(known)}")
    return row, options


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: a whole number from 1 is needed")


def _check_number(name: str, value: Any, *, above_zero: bool) -> None:
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (above_zero and value == 0):
        raise ValueError(f"{name}={value!r}: a number {'above 0' if above_zero else 'from 0'} is needed")
