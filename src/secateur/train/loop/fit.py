"""Training a network, as a plain loop that can be entered, left, watched and resumed anywhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from secateur.train.loop.fitted import Callback, Fitted, Metric, Progress
from secateur.train.loop.job import Job
from secateur.train.loop.randomness import borrowed
from secateur.train.loop.run import Run
from secateur.train.loop.snapshot import Snapshot
from secateur.train.loop.training import Training
from secateur.train.pruner import Pruner

__all__ = ["fit"]


def fit(
    model: nn.Module,
    data: Any,
    training: Training,
    *,
    valid: Any = None,
    metric: Metric | None = None,
    pruner: Pruner | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    start: int = 0,
    stop: int | None = None,
    snapshot: Snapshot | None = None,
    keep: Iterable[int] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    every: int | None = None,
    progress: Progress | bool | None = None,
) -> Fitted:
    """Train a network in place; its masks hold.

    The clock counts optimizer steps of the whole training, ``epochs * ceil(batches / accumulate)``. The order of the
    data is a function of ``training.seed`` and the epoch, so that a training can be entered at any step; two runs of
    one training from the same weights end with the same bits. The random states of Python, NumPy and torch, the
    loader's generator, and train and eval mode of the modules are afterwards as they were.

    Args:
        model: any module. If it is in eval mode, all of it is put into train mode meanwhile; if it is in train mode,
            parts that you put into eval mode (frozen batch norms) stay so. Parameters without grad stay as they are.
        data: a pair of tensors ``(x, y)`` or a mapping of tensors, batched here; or a DataLoader or another re-iterable
            of batches.
        training: the choices.
        valid: for ``metric``, after every epoch.
        metric: ``metric(model, valid) -> float``, larger is better, in eval mode; None: top-1 accuracy in per cent.
        pruner: prunes on the way; it is attached here, and detached at the end.
        callbacks: called with a ``Moment`` after every optimizer step and at every epoch's end.
        start: begin at this step, with the learning rate and the data of there.
        stop: leave when the clock shows this step.
        snapshot: what to begin with: weights, buffers and optimizer state. Masks of the model stay and are applied.
        keep: steps to keep a ``Snapshot`` of; 0: before the first.
        checkpoint: a file, written as one step at every epoch's end. If it is there already the run goes on from it,
            to the same bits as if it had never stopped; a finished run returns at once.
        every: optimizer steps between two checkpoints, instead.
        progress: None: a bar, where stderr is a terminal; False: none; or a function ``(steps=1)``.

    Returns:
        History, snapshots and cost.

    Raises:
        ValueError: for data that can be read once only, a loss that is not finite, steps outside of the training, and
            a checkpoint that is cut or of another run; the model is untouched then.

    Example:
        >>> import torch
        >>> x, y = torch.eye(4), torch.arange(4)
        >>> net = nn.Linear(4, 4)
        >>> training = Training(epochs=30, optimizer="sgd", batch_size=2, loss=nn.functional.cross_entropy)
        >>> fitted = fit(net, (x, y), training, valid=(x, y))
        >>> fitted.steps, fitted.history[-1].metric
        (60, 100.0)
    """
    if not isinstance(training, Training):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"training={training!r}: give a Training, e.g. Training(epochs=10, loss=F.cross_entropy)")
    job = Job.asked(
        model,
        data,
        training,
        valid=valid,
        metric=metric,
        pruner=pruner,
        callbacks=callbacks,
        start=start,
        stop=stop,
        snapshot=snapshot,
        keep=keep,
        checkpoint=checkpoint,
        every=every,
    )
    state = None if job.checkpoint is None else job.checkpoint.read()
    with ExitStack() as stack:
        stack.enter_context(borrowed(job.device, job.feed.generators))
        run = Run(job, stack.enter_context(_told(progress, job)))
        stack.enter_context(_train_mode(model))
        stack.callback(run.leave)
        if state is None:
            run.begin()
        else:
            run.resume(state)
        return run.go()


@contextmanager
def _train_mode(model: nn.Module) -> Generator[None]:
    """Train mode, unless the model is in it already, parts of it on purpose not; afterwards every flag as it was."""
    flags = [(module, module.training) for module in model.modules()]
    if not model.training:
        model.train()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def _told(progress: Progress | bool | None, job: Job) -> Generator[Callable[[int], object] | None]:
    """What is told of every step: the user's function, or a bar where someone can see it."""
    if callable(progress):
        yield progress
        return
    if progress is False or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    last = job.total if job.stop is None else job.stop
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task, waiting, shown = bar.add_task("steps", total=None if last is None else last - job.start), 0, 0.0

        def tell(steps: int) -> None:
            nonlocal waiting, shown
            waiting += steps
            if time.perf_counter() - shown > 0.1:  # a bar that is moved at every step takes longer than a small step
                bar.advance(task, waiting)
                waiting, shown = 0, time.perf_counter()

        yield tell
        bar.advance(task, waiting)
