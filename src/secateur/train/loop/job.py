"""What a training was asked for, checked before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from secateur.measure.fit import evaluate
from secateur.measure.quiet import quiet
from secateur.model.masks import Masks
from secateur.model.registry import find_masks
from secateur.train.loop.checkpoint import Checkpoint, check_place, run_identity
from secateur.train.loop.feed import Feed, make_feed
from secateur.train.loop.fitted import Callback, Metric
from secateur.train.loop.snapshot import Snapshot
from secateur.train.loop.training import Training
from secateur.train.pruner import Pruner

__all__ = ["Job", "trainable"]


@dataclass(frozen=True, eq=False)
class Job:
    """What ``fit`` was asked for.

    Attributes:
        device: of the model.
        measure: the metric on ``valid``.
        masks: of the model.
        total: optimizer steps of the whole training; None where only reading tells.
    """

    model: nn.Module
    feed: Feed
    training: Training
    device: torch.device
    measure: Callable[[], float] | None
    masks: Masks | None
    pruner: Pruner | None
    callbacks: tuple[Callback, ...]
    snapshot: Snapshot | None
    start: int
    stop: int | None
    keep: frozenset[int]
    checkpoint: Checkpoint | None
    total: int | None

    @classmethod
    def asked(
        cls,
        model: nn.Module,
        data: Any,
        training: Training,
        *,
        valid: Any,
        metric: Metric | None,
        pruner: Pruner | None,
        callbacks: Callback | Sequence[Callback],
        start: int,
        stop: int | None,
        snapshot: Snapshot | None,
        keep: Iterable[int],
        checkpoint: str | os.PathLike[str] | None,
        every: int | None,
    ) -> Job:
        """The job of the arguments of ``fit``.

        Raises:
            ValueError: for arguments that do not go together.
        """
        device = trainable(model)[0].device
        feed, masks, kept = make_feed(data, training, device), find_masks(model), frozenset(keep)
        _check_valid(training, valid, metric)
        if pruner is not None and pruner.masks is not masks:
            raise ValueError("pruner= belongs to another model, or its masks were undone: make one of this model")
        total = None if feed.length is None else training.epochs * -(-feed.length // training.accumulate)
        _check_steps(total, start, stop, kept)
        if every is not None and (checkpoint is None or type(every) is not int or every < 1):
            raise ValueError(f"every={every!r}: steps between two checkpoints, from 1, together with checkpoint=")
        measure = None if valid is None else _measured(model, valid, metric)
        calls = (callbacks,) if callable(callbacks) else tuple(callbacks)
        job = cls(
            model, feed, training, device, measure, masks, pruner, calls, snapshot, start, stop, kept, None, total
        )
        if checkpoint is None:
            return job
        _check_workers(data)
        return replace(job, checkpoint=Checkpoint(check_place(checkpoint), every, job.identity()))

    def identity(self) -> dict[str, str]:
        """What makes this run, as text."""
        others = {
            "data": self.feed.describe(),
            "batches per epoch": self.feed.length,
            "start": self.start,
            "stop": self.stop,
            "keep": sorted(self.keep),
            "snapshot": None if self.snapshot is None else f"of step {self.snapshot.step}",
            "valid": "none" if self.measure is None else "given",
        }
        return run_identity(self.training, self.pruner, self.masks, self.model, others)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require grad.

    Raises:
        ValueError: if there is none.
    """
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise ValueError(f"{type(model).__name__} has no parameter that requires grad: there is nothing to train")
    return found


def _check_valid(training: Training, valid: Any, metric: Metric | None) -> None:
    if valid is None and (metric is not None or training.patience is not None):
        wanting = "metric=" if metric is not None else f"patience={training.patience}"
        raise ValueError(f"{wanting} needs data to measure on after every epoch: give valid=")


def _check_steps(total: int | None, start: int, stop: int | None, keep: frozenset[int]) -> None:
    named = {
        "start": start,
        **({} if stop is None else {"stop": stop}),
        **{f"keep has {step!r}": step for step in keep},
    }
    for name, step in named.items():
        if type(step) is not int or step < 0:
            raise ValueError(f"{name}={step!r}: steps are whole numbers from 0")
    if total is None:
        if start:
            raise ValueError(f"start={start}: this loader has no len(), so it is not known where in the data that is")
        return
    if start > total or (stop is not None and not start <= stop <= total):
        raise ValueError(f"start={start}, stop={stop}: this training has {total} steps; 0 <= start <= stop <= {total}")
    last = total if stop is None else stop
    outside = sorted(step for step in keep if not start <= step <= last)
    if outside:
        raise ValueError(f"keep={outside}: this run goes from step {start} to step {last}")


def _check_workers(data: Any) -> None:
    if getattr(data, "persistent_workers", False):
        raise ValueError(
            "a loader with persistent_workers=True carries random states from epoch to epoch that no checkpoint can "
            "hold: make it with persistent_workers=False, or train without checkpoint="
        )


def _measured(model: nn.Module, valid: Any, metric: Metric | None) -> Callable[[], float]:
    def measure() -> float:
        if metric is None:
            return 100 * evaluate(model, valid, split="valid").top1
        with quiet(model, loader=valid):
            return float(metric(model, valid))

    return measure
