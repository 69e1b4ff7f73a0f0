"""Training after pruning: on from where it was, or again from an earlier point of the schedule or of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from secateur.core.names import lookup
from secateur.train.loop.feed import steps_per_epoch
from secateur.train.loop.fit import Fitted, fit
from secateur.train.loop.snapshot import Snapshot
from secateur.train.loop.training import Training
from secateur.train.recovery.rate import first_rate, last_rate, scaled
from secateur.train.recovery.same_network import check_same_network
from secateur.train.recovery.whole import left_whole

__all__ = ["RECOVERIES", "Ask", "Course", "RecoveryEntry", "course_of", "recover"]


@dataclass(frozen=True)
class Ask:
    """What a recovery is worked out from.

    Attributes:
        training: how the dense model was trained, E epochs.
        per_epoch: optimizer steps of one epoch.
        epochs: how long to recover; None: as the snapshot says.
        snapshot: to rewind to.
        lr: another learning rate than the last one.
        turn: which recovery this is, from 1, where there are several after each other.
    """

    training: Training
    per_epoch: int
    epochs: int | None = None
    snapshot: Snapshot | None = None
    lr: float | None = None
    turn: int = 1


@dataclass(frozen=True)
class Course:
    """How ``fit`` is called: the training, the step of its clock to begin with, and what is restored first."""

    training: Training
    start: int
    snapshot: Snapshot | None = None


Recovery: TypeAlias = Callable[[Ask], Course]


@dataclass(frozen=True)
class RecoveryEntry:
    """A row of ``RECOVERIES``."""

    function: Recovery
    summary: str
    reference: str


def recover(
    model: nn.Module,
    data: Any,
    training: Training,
    how: str = "finetune",
    *,
    epochs: int | None = None,
    snapshot: Snapshot | None = None,
    lr: float | None = None,
    valid: Any = None,
    metric: Any = None,
    callbacks: Any = (),
    checkpoint: str | Path | None = None,
    every: int | None = None,
    progress: Any = None,
) -> Fitted:
    """Train a pruned model, in place, in one of three ways; its masks hold.

    With a dense training of E epochs and t = ``epochs``:

    - ``"finetune"``: the weights as they are, t epochs at the last learning rate of ``training``;
    - ``"rewind_lr"``: the weights as they are, the last t epochs of the schedule again (so the rate goes up again);
    - ``"rewind_weights"``: everything as it was in ``snapshot`` except the masks: weights, batch-norm statistics,
      the optimizer's memory; then the rest of the schedule from there. Taken after E - t epochs it is Renda's weight
      rewinding, taken at step 0 or at a few per cent of training it is a lottery ticket.

    In the first two the optimizer begins anew. If training fails, also by Ctrl-C, the model is put back as it was
    given; with a ``checkpoint`` the same call goes on where it was.

    Args:
        model: with masks, or really smaller (not for ``"rewind_weights"``: the snapshot has the old shapes).
        data: what it was trained on: a pair of tensors, or batches that can be read again.
        training: how the dense model was trained.
        how: a name of ``RECOVERIES``.
        epochs: t; not needed with a snapshot.
        snapshot: of the dense training: ``sc.fit(..., keep=(step,)).snapshots[step]``.
        lr: of ``"finetune"``: another rate than the last one of the schedule.
        valid: held-out data, as for ``sc.fit``.
        metric: as for ``sc.fit``.
        callbacks: as for ``sc.fit``.
        checkpoint: file from which a run that was stopped goes on.
        every: optimizer steps between two checkpoints; None: once an epoch.
        progress: as for ``sc.fit``.

    Returns:
        What ``fit`` says of the training. Steps and epochs are counted on from those of the dense training.

    Raises:
        ValueError: for an unknown way, for choices that do not go together, for a schedule that ends at a rate of
            zero (``"finetune"``), and for whatever ``sc.fit`` refuses.

    Example:
        >>> import torch, secateur as sc
        >>> x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
        >>> net = nn.Linear(4, 2)
        >>> training = Training(4, "sgd", lr_schedule="steps(0.5)", loss=nn.functional.cross_entropy)
        >>> dense = fit(net, (x, y), training, keep=(1,), progress=False)
        >>> masks = sc.prune(net, 0.5)
        >>> after = recover(net, (x, y), training, "rewind_weights", snapshot=dense.snapshots[1], progress=False)
        >>> [round(row.lr, 3) for row in after.history], masks.check()
        ([0.1, 0.01, 0.01], None)

    Reference:
        Renda, Frankle, Carbin 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning", arXiv 2003.02389;
        Frankle, Dziugaite, Roy, Carbin 2019, arXiv 1903.01611; Frankle and Carbin 2019, arXiv 1803.03635.
    """
    course = course_of(how, Ask(training, steps_per_epoch(data, training), epochs, snapshot, lr))
    if course.snapshot is not None:
        check_same_network(model, course.snapshot)
    with left_whole(model):
        return fit(
            model,
            data,
            course.training,
            start=course.start,
            snapshot=course.snapshot,
            valid=valid,
            metric=metric,
            callbacks=callbacks,
            checkpoint=checkpoint,
            every=every,
            progress=progress,
        )


def course_of(how: str, ask: Ask) -> Course:
    """How a recovery trains; nothing is run.

    Args:
        how: a name of ``RECOVERIES``.
        ask: training, epochs, snapshot, learning rate.

    Returns:
        The training and where its clock begins.

    Raises:
        ValueError: for an unknown name, or choices that do not go together.

    Example:
        >>> training = Training(100, "sgd", lr_schedule="steps(0.5, 0.75)")
        >>> course_of("rewind_lr", Ask(training, per_epoch=10, epochs=40)).start
        600
    """
    return lookup("recovery", RECOVERIES, how).function(ask)


def _finetune(ask: Ask) -> Course:
    _refuse("finetune", snapshot=ask.snapshot, why="goes on from the weights as they are")
    epochs = _epochs(ask, "finetune")
    done = ask.training.epochs + (ask.turn - 1) * epochs  # on and on, so that the data never comes in the same order
    rate = last_rate(ask.training, ask.training.epochs * ask.per_epoch) if ask.lr is None else _positive(ask.lr)
    steady = replace(ask.training, epochs=done + epochs, lr_schedule="constant")
    return Course(scaled(steady, rate / first_rate(ask.training)), done * ask.per_epoch)


def _rewind_lr(ask: Ask) -> Course:
    _refuse("rewind_lr", snapshot=ask.snapshot, why="goes on from the weights as they are")
    _refuse("rewind_lr", lr=ask.lr, why="takes the learning rates of the schedule")
    back = _epochs(ask, "rewind_lr", most=ask.training.epochs)
    return Course(ask.training, (ask.training.epochs - back) * ask.per_epoch)


def _rewind_weights(ask: Ask) -> Course:
    _refuse("rewind_weights", lr=ask.lr, why="takes the learning rates of the schedule")
    per_epoch, total = ask.per_epoch, ask.training.epochs * ask.per_epoch
    wanted = (
        None if ask.epochs is None else total - _epochs(ask, "rewind_weights", most=ask.training.epochs) * per_epoch
    )
    if ask.snapshot is None:
        step = 0 if wanted is None else wanted
        raise ValueError(
            "how='rewind_weights' needs snapshot=, the dense training as it was then: "
            f"dense = sc.fit(..., keep=({step},)); snapshot=dense.snapshots[{step}]"
        )
    step = ask.snapshot.step
    if wanted is not None and step != wanted:
        raise ValueError(
            f"epochs={ask.epochs} begin at step {wanted} of {total} ({per_epoch} an epoch), but the snapshot was taken "
            f"at step {step}: leave epochs out to train from there on, or keep=({wanted},) in the dense training"
        )
    if not 0 <= step < total:
        raise ValueError(
            f"the snapshot was taken at step {step}, and this training has the steps 0 to {total - 1}; give the "
            "training, and data of the length, that it was taken in"
        )
    return Course(ask.training, step, ask.snapshot)


RECOVERIES: Mapping[str, RecoveryEntry] = {
    "finetune": RecoveryEntry(
        _finetune, "the weights as they are, t epochs at the last learning rate", "Han et al. 2015, arXiv 1506.02626"
    ),
    "rewind_lr": RecoveryEntry(
        _rewind_lr, "the weights as they are, the schedule's last t epochs again", "Renda et al. 2020, arXiv 2003.02389"
    ),
    "rewind_weights": RecoveryEntry(
        _rewind_weights,
        "weights, statistics and optimizer as they were at a step, the schedule from there",
        "Frankle et al. 2019, arXiv 1903.01611",
    ),
}
"""Name -> how a pruned model is trained again."""


def _epochs(ask: Ask, how: str, most: int | None = None) -> int:
    epochs = ask.epochs
    if epochs is None:
        raise ValueError(f"how={how!r} needs epochs=, how long to train after pruning")
    if type(epochs) is not int or epochs < 1 or (most is not None and epochs > most):
        limit = "" if most is None else f" to {most}, the epochs of the schedule that there are to take again"
        raise ValueError(f"epochs={epochs!r} for how={how!r}: a whole number from 1{limit}")
    return epochs


def _positive(lr: float) -> float:
    if not (isinstance(lr, (int, float)) and not isinstance(lr, bool) and 0 < lr < float("inf")):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"lr={lr!r}: a number above 0")
    return float(lr)


def _refuse(how: str, *, why: str, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"how={how!r} {why}, so {name}= has no use there; leave it out")
