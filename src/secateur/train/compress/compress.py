"""One call from a model and a goal to a smaller model that meets it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from secateur.core import lookup
from secateur.measure.environment import environment
from secateur.measure.latency import threads_set
from secateur.model.batches import LossFunction, StepFunction
from secateur.model.masks import find_masks
from secateur.records import Environment, Trials
from secateur.train.compress.candidates import Family, families_for
from secateur.train.compress.cheap import Range
from secateur.train.compress.estimate import estimate
from secateur.train.compress.frontier import frontier_of
from secateur.train.compress.goal import Goal
from secateur.train.compress.identity import identity_of, same_data
from secateur.train.compress.journal import Journal, Shelf
from secateur.train.compress.page import in_digits
from secateur.train.compress.reporting import report_of
from secateur.train.compress.result import Compressed
from secateur.train.compress.rivals import measure_rivals
from secateur.train.compress.run import Run
from secateur.train.compress.search import SEARCHES
from secateur.train.compress.setting import Judge, Setting, copied, example_of, undisturbed
from secateur.train.compress.stage import Stage, check_stages
from secateur.train.loop.fitted import Metric
from secateur.train.loop.training import Training
from secateur.train.recovery.fresh import Initialise

__all__ = ["compress"]

_DEFAULT = "3 epochs of adam at 1e-3, linearly to 0: the default; give recovery= what your model was trained with"


def compress(
    model: nn.Module,
    train: Any,
    valid: Any,
    test: Any = None,
    *,
    goal: Goal,
    loss: LossFunction | None = None,
    step: StepFunction | None = None,
    metric: Metric | None = None,
    recovery: Training | None = None,
    stages: Sequence[Stage] | None = None,
    example_inputs: Any = None,
    batch: int = 1,
    trials: int = 8,
    search: Literal["bisect", "optuna"] = "bisect",
    rivals: bool = True,
    rival_epochs: int | None = None,
    init: Mapping[str, Tensor] | Initialise | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[str], object] | Literal[False] | None = None,
) -> Compressed:
    """Make a model smaller or faster until it meets a goal, and measure it beside what else there is.

    What needs no training (the file, parameters, multiply-adds, the clock) is bisected first, on candidates without
    training; then strengths are trained, and the largest within ``max_drop`` is looked for. Of the points that meet the
    goal the smallest is chosen (under a goal of speed alone: the one with the fewest multiply-adds); without
    ``max_drop`` the one with the best metric. Choices are made on ``valid``; figures are told on ``test``.

    Args:
        model: trained; it is not changed. Wrappers are looked through.
        train: for recovery: a pair of tensors ``(x, y)``, or a loader or list of batches.
        valid: what choices are made on.
        test: what figures are told on; None: on ``valid``, and that is said.
        goal: what is asked.
        loss: ``loss(output, labels)``.
        step: ``step(model, batch) -> loss`` for batches of another shape.
        metric: ``metric(model, data)``, larger is better; None: top-1 accuracy in per cent.
        recovery: how every point is trained; None: 3 epochs of Adam.
        stages: what is removed, when; None: as the goal asks.
        example_inputs: to trace, count and time with, batch on axis 0; None: from ``valid``.
        batch: samples per call of the clock.
        trials: points to train at most.
        search: ``"bisect"``, or ``"optuna"`` (extra ``search``).
        rivals: measure the dense model in bfloat16 and a narrower network trained from scratch too.
        rival_epochs: of that narrower network; None: as many as the chosen point was trained.
        init: for stages before training and the narrower network: a function that initialises a model in place, or (for
            stages) a state dict of fresh weights; None: every module's own ``reset_parameters``.
        folder: every point is kept there; run again, and it continues, in the middle of a training too. None: nothing
            is written, and only models of the frontier stay in memory.
        seed: of everything random.
        progress: called with lines for the user; None: lines and bars on stderr, where that is a terminal; False: none.

    Returns:
        The model, whether it meets the goal, and the record of everything; print it.

    Raises:
        ValueError: for data that cannot be told apart, a metric that is no number, choices that do not go together,
            goals that the dense model meets, models of which nothing can be removed, and folders of another run. The
            model is as it was.
        ImportError: for ``search="optuna"`` where that is not installed.

    Example:
        >>> import torch
        >>> x, y = torch.randn(64, 4), torch.arange(64) % 2
        >>> net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> result = compress(
        ...     net,
        ...     (x[:32], y[:32]),
        ...     (x[32:], y[32:]),
        ...     goal=Goal(params=0.5),
        ...     loss=nn.functional.cross_entropy,
        ...     trials=2,
        ...     rivals=False,
        ... )
        >>> result.met, result.record.dense.params, sum(int((p != 0).sum()) for p in result.model.parameters()) <= 113
        (True, 226, True)
    """
    _refuse(model, train, valid, test, goal, {"trials": trials, "batch": batch, "rival_epochs": rival_epochs})
    spend = lookup("search", SEARCHES, search)
    given = stages if stages is None else tuple(stages)
    if given is not None:
        check_stages(given)
    families = families_for(goal, given)
    trained_by = _recovery(recovery, loss, step, seed)
    dense = copied(model)
    judge = Judge(dense, metric)
    where = None if folder is None else Path(folder)
    tell, bar = _speaker(progress)
    with undisturbed(train, valid, test):
        example = example_of(dense, valid, example_inputs)
        setting = Setting(dense, train, valid, test, trained_by, judge, example, batch, seed, *_fresh(init))
        journal = Journal(where, identity_of(setting, goal, families, metric, example_inputs))
        try:
            run = Run(setting, goal, journal, Shelf(where, dense), tell, bar)
            ranges = _prepared(run, families, trials)
            spend(run, ranges, trials)
            return _finished(run, ranges, where, rivals, rival_epochs, default=recovery is None)
        finally:
            journal.close()


def _refuse(model: nn.Module, train: Any, valid: Any, test: Any, goal: Goal, numbers: Mapping[str, Any]) -> None:
    if not isinstance(goal, Goal):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"goal={goal!r}: give a Goal, e.g. goal=sc.Goal(max_drop=1.0, bytes=0.25)")
    if find_masks(model) is not None:
        raise ValueError(
            "this model has masks: compress begins with a dense model; masks.undo(), or a deepcopy of before"
        )
    given: dict[str, Any] = {"train": train, "valid": valid, "test": test}
    for name, data in given.items():
        if data is None and name != "test":
            use = "points are trained on it" if name == "train" else "points are chosen by it; hold some of train out"
            raise ValueError(f"{name}= is missing: {use}")
        if isinstance(data, Iterator):
            raise ValueError(
                f"{name} is an iterator, which can be read once only; give the loader or a list of batches"
            )
    parts = len(cast("tuple[Any, ...]", train)) if isinstance(train, tuple) else 2
    if parts != 2 and all(isinstance(item, Tensor) for item in cast("tuple[Any, ...]", train)):
        raise ValueError(
            f"train is a tuple of {parts} tensors, which could be batches or parts of them: give a pair (x, y), a "
            "mapping of tensors, or a loader such as DataLoader(TensorDataset(*tensors), batch_size=64), with step="
        )
    for one, other, why in (
        ("valid", "test", "a figure that was searched on is no test; leave test= out, or hold some data out"),
        ("train", "valid", "what was trained on chooses badly; hold some data out"),
        ("train", "test", "what was trained on is no test"),
    ):
        if same_data(given[one], given[other]):
            raise ValueError(f"{one} and {other} are the same data: {why}")
    for name, value in numbers.items():
        if (value is not None or name != "rival_epochs") and (type(value) is not int or value < 1):
            raise ValueError(f"{name}={value!r}: a whole number from 1")


def _recovery(recovery: Training | None, loss: LossFunction | None, step: StepFunction | None, seed: int) -> Training:
    if recovery is None:
        return Training(3, "adam", lr=1e-3, lr_schedule="linear", loss=loss, step=step, seed=seed)
    for name, value in (("loss", loss), ("step", step)):
        there = getattr(recovery, name)
        if value is not None and there is not None and value is not there:
            raise ValueError(f"{name}= is given, and recovery has another one: give it once")
    return replace(recovery, loss=loss or recovery.loss, step=step or recovery.step)


def _fresh(init: Mapping[str, Tensor] | Initialise | None) -> tuple[Mapping[str, Tensor] | None, Initialise | None]:
    if init is None or isinstance(init, Mapping):
        return cast("Mapping[str, Tensor] | None", init), None
    return None, init


def _speaker(progress: Callable[[str], object] | Literal[False] | None) -> tuple[Callable[[str], None], Any]:
    """Where lines go, and what ``fit`` shows."""
    if callable(progress):
        given = progress
        return lambda line: (given(line), None)[1], False
    if progress is None and sys.stderr.isatty():
        return lambda line: (sys.stderr.write(f"{line}\n"), None)[1], None
    return lambda line: None, False


def _prepared(run: Run, families: tuple[Family, ...], trials: int) -> dict[Family, Range]:
    dense = run.dense
    score = in_digits(dense.valid.value, dense.valid)
    run.tell(f"your model: {score} on valid, {dense.bytes:,} bytes, {dense.ms:.3g} ms; goal: {run.limits}")
    most, value = run.goal.max_drop, abs(dense.valid.value)
    if most is not None and 0 < value <= most:
        run.notes.append(
            f"max_drop={most:g} allows as much as all of the metric ({run.setting.judge.name}: {score} on valid): it "
            "counts in the metric's own units; of a fraction of 1, a point is max_drop=0.01"
        )
        run.tell(run.notes[-1])
    ranges = run.ranges(families)
    run.tell(estimate(run, ranges, trials))
    return ranges


def _finished(
    run: Run, ranges: Mapping[Family, Range], folder: Path | None, rivals: bool, epochs: int | None, *, default: bool
) -> Compressed:
    chosen = run.chosen()
    found = measure_rivals(run, chosen, epochs) if rivals else ()
    run.tested()
    points = tuple(run.points.values())
    missed = run.limits.told(chosen)
    record = Trials(
        goal=run.goal.given,
        limits=dict(run.limits.sizes),
        met=not missed,
        missed=missed,
        metric=run.setting.judge.name,
        split="valid" if run.setting.test is None else "test",
        batch=run.setting.batch,
        dense=run.with_test(run.dense),
        chosen=chosen.key,
        points=points,
        frontier=tuple(point.key for point in frontier_of(points, run.dense)),
        rivals=found,
        families={family.name: family.describe() for family in ranges},
        recovery=run.setting.recovery.describe(),
        notes=(*run.notes, *([f"recovery: {_DEFAULT}"] if default else [])),
        folder=None if folder is None else str(folder),
        environment=_environment(),
    )
    model = run.shelf.get(chosen.key)
    assert model is not None, "the chosen model is always kept"
    report = report_of(run, record)
    run.tell(f"{'goal met' if record.met else 'goal not met'}")
    return Compressed(model, record, report)


def _environment() -> Environment:
    with threads_set(1):
        return environment()
