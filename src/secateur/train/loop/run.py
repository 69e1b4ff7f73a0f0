"""The loop itself: epochs of steps, from where it stands to where it ends."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import astuple
from itertools import islice
from typing import Any, final

from torch import Tensor

from secateur.model.batches import Batch
from secateur.records import TrainingCost
from secateur.train.loop.checkpoint import check_masks, check_plain
from secateur.train.loop.feed import fingerprint
from secateur.train.loop.fitted import EpochRow, Fitted, Moment
from secateur.train.loop.job import Job, trainable
from secateur.train.loop.learning_rate import LearningRate
from secateur.train.loop.randomness import mixed, random_state, restore_random_state, seed_all
from secateur.train.loop.snapshot import Snapshot, load_optimizer, model_tensors, own_tensors, put_tensors
from secateur.train.loop.spent import Spent
from secateur.train.loop.stepper import Stepper, not_finite
from secateur.train.loop.training import make_optimizer

__all__ = ["Run"]

_LOOK = 50
"""Steps between two looks at a loss that is on a device: each look waits for it."""


@final
class Run:
    """One training under way.

    Args:
        job: what is asked for.
        tell: told how many steps have been made.
    """

    def __init__(self, job: Job, tell: Callable[[int], object] | None) -> None:
        self._job, self._tell = job, tell
        self._optimizer = make_optimizer(job.training, trainable(job.model))
        self._rate = LearningRate(self._optimizer, job.training, job.total)
        per_epoch = None if job.total is None else job.total // job.training.epochs
        self._step = job.start
        self._epoch, inside = divmod(job.start, per_epoch) if per_epoch else (0, 0)
        self._batch = inside * job.training.accumulate
        self._sum: float | Tensor = 0.0
        self._count, self._seconds, self._lr = 0, 0.0, 0.0
        self._history: list[EpochRow] = []
        self._snapshots: dict[int, Snapshot] = {}
        self._ended = self._early = False
        self._last: Batch = None
        self._batches: Iterator[Batch] | None = None
        self._spent = Spent()

    # -- beginning --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Set out from the model as it is, or from a snapshot."""
        job, snapshot = self._job, self._job.snapshot
        self._rate.forward(job.start)
        if job.checkpoint is not None:  # refused now, not when the first checkpoint is due
            check_plain(self._optimizer.state_dict(), "the optimizer's state")
            check_plain(self._rate.state_dict(), "the scheduler's state")
        if snapshot is not None:
            load_optimizer(self._optimizer, snapshot.optimizer, "this snapshot", rates=False)
            put_tensors(job.model, snapshot.model, "this snapshot")
            if snapshot.step == job.start:
                self._rate.load_state_dict(snapshot.scheduler)
        seed_all(mixed(job.training.seed, job.start, 4))  # a pruner may read data as soon as it is attached
        self._attach()
        self._batches = self._replayed()
        if snapshot is not None and snapshot.step == job.start and snapshot.random and self._batch:
            restore_random_state(snapshot.random, job.device)
        if job.start in job.keep:
            self._keep()

    def resume(self, state: dict[str, Any]) -> None:
        """Set out from a checkpoint; the model is touched last, when all else has been found to fit."""
        job = self._job
        self._step, self._epoch, self._batch = state["position"]
        self._sum, self._count, self._seconds, self._lr = state["loss"]
        self._history = [EpochRow(*row) for row in state["history"]]
        self._snapshots = {int(step): Snapshot(**each) for step, each in state["snapshots"].items()}
        self._ended, self._early = state["ended"], state["early"]
        self._spent.before = TrainingCost(*state["cost"])
        if not self._ended:
            self._batches = self._replayed()
            if self._batch and fingerprint(self._last) != state["batch"]:
                raise ValueError(
                    f"the data does not come as it came before: batch {self._batch - 1} of epoch {self._epoch} differs "
                    "from the one that was read when the checkpoint was written. Its order or its transforms draw from "
                    "something else than Python's, NumPy's and torch's random states and the loader's generator, or "
                    "the data has changed; delete the checkpoint to begin anew"
                )
        self._check_masks(state)
        put_tensors(job.model, state["model"], "this checkpoint")
        load_optimizer(self._optimizer, state["optimizer"], "this checkpoint", rates=True)
        self._rate.load_state_dict(state["scheduler"])
        if job.pruner is not None:
            job.pruner.load_state_dict(state["pruner"])
        elif job.masks is not None:
            job.masks.load_state_dict(state["masks"])
        self._attach()
        if self.stepper.scaler is not None:
            self.stepper.scaler.load_state_dict(state["scaler"])
        if self._batch:
            restore_random_state(state["random"], job.device)
        if self._tell is not None:
            self._tell(self._step - job.start)

    def leave(self) -> None:
        """Let go of the model: afterwards nothing of this run holds it."""
        if self._job.pruner is not None:
            self._job.pruner.detach()
        self._job.model.zero_grad()

    def _check_masks(self, state: dict[str, Any]) -> None:
        job = self._job
        if job.masks is not None and job.checkpoint is not None:
            masks = state["masks"] if job.pruner is None else state["pruner"]["masks"]
            check_masks(masks, job.masks, job.checkpoint.path, same=job.pruner is None)

    def _attach(self) -> None:
        job = self._job
        if job.pruner is not None:
            job.pruner.attach(self._optimizer)
        elif job.masks is not None:
            job.masks.attach(self._optimizer)
            job.masks.apply()
        self.stepper = Stepper(job.model, self._optimizer, job.training, job.device)

    def _replayed(self) -> Iterator[Batch]:
        """The batches of this epoch that are still to come."""
        batches = iter(self._job.feed.epoch(self._epoch))
        for place in range(self._batch):
            self._last = next(batches, None)
            if self._last is None:
                raise ValueError(f"the data ends after batch {place} of epoch {self._epoch}; {self._batch} were read")
        return batches

    # -- going ------------------------------------------------------------------------------------

    def go(self) -> Fitted:
        """Train to the end."""
        job = self._job
        with self._spent:
            while not self._ended and self._epoch < job.training.epochs and self._step != job.stop:
                batches, self._batches = self._batches or job.feed.epoch(self._epoch), None
                if self._one_epoch(batches):
                    self._end_epoch()
            if not self._ended:
                self._ended = True
                self._write()
        self._tell_of_skipped_steps()
        cost = self._spent.before
        return Fitted(self._step - job.start, tuple(self._history), self._snapshots, self._early, cost)

    def _one_epoch(self, batches: Iterator[Batch]) -> bool:
        """Steps until the batches end (True) or the step to stop at is reached (False)."""
        job, rate, optimizer, stepper = self._job, self._rate, self._optimizer, self.stepper
        size, length = job.training.accumulate, job.feed.length
        every = None if job.checkpoint is None else job.checkpoint.every
        began = time.perf_counter() - self._seconds
        while group := list(islice(batches, size)):
            rate.before(self._step)
            loss = stepper(group, self._step)
            self._lr = rate.now
            rate.after()
            self._step += 1
            self._count += 1
            self._batch += len(group)
            self._sum += loss
            if not isinstance(loss, float) and self._step % _LOOK == 0:
                self._look()
            if self._step in job.keep:
                self._keep()
            for callback in job.callbacks:
                callback(Moment("step", self._step, self._epoch, float(loss), self._lr, None, job.model, optimizer))
            if self._tell is not None:
                self._tell(1)
            if self._batch == length:
                continue  # the end of the epoch comes first, whatever is due
            self._last = group[-1]
            self._seconds = time.perf_counter() - began
            if self._step == job.stop:
                return False
            if every is not None and self._step % every == 0:
                self._write()
        self._seconds = time.perf_counter() - began
        return True

    def _end_epoch(self) -> None:
        job, length = self._job, self._job.feed.length
        if not self._batch or (length is not None and self._batch != length):
            said = "" if length is None else f", and its len() is {length}"
            raise ValueError(
                f"the data gave {self._batch} batches in epoch {self._epoch}{said}: it has to give as many as it says, "
                "at least one, in every epoch"
            )
        began, loss, lr = time.perf_counter(), self._look() / max(1, self._count), self._lr
        metric = None if job.measure is None else job.measure()
        self._epoch += 1
        seconds = self._seconds + time.perf_counter() - began
        self._history.append(EpochRow(self._epoch, self._step, loss, lr, metric, seconds))
        self._batch, self._sum, self._count, self._seconds = 0, 0.0, 0, 0.0
        for callback in job.callbacks:
            callback(Moment("epoch", self._step, self._epoch, loss, lr, metric, job.model, self._optimizer))
        self._early = self._ended = self._epoch < job.training.epochs and self._out_of_patience()
        self._ended = self._ended or self._epoch == job.training.epochs or self._step == job.stop
        every = None if job.checkpoint is None else job.checkpoint.every
        if self._ended or every is None or self._step % every == 0:
            self._write()

    def _out_of_patience(self) -> bool:
        patience = self._job.training.patience
        if patience is None:
            return False
        metrics = [-math.inf if row.metric is None or math.isnan(row.metric) else row.metric for row in self._history]
        return len(metrics) - 1 - metrics.index(max(metrics)) >= patience

    def _tell_of_skipped_steps(self) -> None:
        pruner = self._job.pruner
        if pruner is not None and self.stepper.scaler is not None and pruner.clock < pruner.plan.last <= self._step:
            warnings.warn(
                "amp='fp16' skipped steps whose gradients were infinite, and the pruner's clock does not count those: "
                f"it shows {pruner.clock}, its plan ends at {pruner.plan.last}. End the plan earlier, or take 'bf16'",
                stacklevel=4,
            )

    # -- keeping ----------------------------------------------------------------------------------

    def _look(self) -> float:
        """The sum of losses so far.

        Raises:
            ValueError: if it is not finite; on a device that is seen here only.
        """
        total = float(self._sum)
        if not math.isfinite(total):
            raise not_finite(total, f"at or shortly before step {self._step}", self._job.training)
        return total

    def _keep(self) -> None:
        self._look()
        job = self._job
        self._snapshots[self._step] = Snapshot(
            self._step,
            model_tensors(job.model),
            copy.deepcopy(self._optimizer.state_dict()),
            copy.deepcopy(self._rate.state_dict()),
            random_state(job.device),
        )

    def _write(self) -> None:
        job = self._job
        if job.checkpoint is None:
            return
        total, scaler = self._look(), self.stepper.scaler
        cost = self._spent.so_far()
        job.checkpoint.write(
            {
                "position": [self._step, self._epoch, self._batch],
                "loss": [total, self._count, self._seconds, self._lr],
                "history": [list(astuple(row)) for row in self._history],
                "snapshots": {step: each.to_record() for step, each in self._snapshots.items()},
                "ended": self._ended,
                "early": self._early,
                "cost": list(astuple(cost)),
                "batch": fingerprint(self._last) if self._batch and not self._ended else 0,
                "model": own_tensors(job.model),
                "optimizer": self._optimizer.state_dict(),
                "scheduler": self._rate.state_dict(),
                "scaler": {} if scaler is None else scaler.state_dict(),
                "pruner": None if job.pruner is None else job.pruner.state_dict(),
                "masks": None if job.masks is None or job.pruner is not None else job.masks.state_dict(),
                "random": random_state(job.device),
            }
        )
