"""Iterative pruning: prune a little, recover, again; lottery tickets are the case that rewinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, final

from torch import Tensor, nn

from secateur.core import CriterionLike
from secateur.model.masks import find_masks
from secateur.model.selectors import Selector
from secateur.train.loop.feed import steps_per_epoch
from secateur.train.loop.fit import fit
from secateur.train.loop.snapshot import Snapshot
from secateur.train.loop.training import Training
from secateur.train.plan import Plan
from secateur.train.recovery.cutting import Cutter
from secateur.train.recovery.folder import RoundsFolder, digest_of
from secateur.train.recovery.recover import Ask, Course, course_of
from secateur.train.recovery.row import Round, Rounds
from secateur.train.recovery.same_network import check_same_network, tensors_of
from secateur.train.recovery.whole import left_whole
from secateur.types import Reduce, Unit

__all__ = ["OnRound", "prune_rounds"]

OnRound: TypeAlias = Callable[[Round, nn.Module], object]
"""Told after every round: its row, and the model as it is now."""


def prune_rounds(
    model: nn.Module,
    data: Any,
    training: Training,
    *,
    sparsities: Sequence[float] | None = None,
    rounds: int | None = None,
    rate: float = 0.2,
    rates: Mapping[Any, float] | None = None,
    how: str = "rewind_weights",
    epochs: int | None = None,
    snapshot: Snapshot | None = None,
    lr: float | None = None,
    criterion: CriterionLike = "magnitude",
    unit: str | Unit = "weight",
    allocation: Any = "global",
    targets: Selector | None = None,
    exclude: Selector | None = None,
    example_inputs: Any = None,
    exact: bool = True,
    reduce: Reduce | None = None,
    min_density: float | None = 0.0,
    seed: int = 0,
    score_data: Any = None,
    init: Mapping[str, Tensor] | None = None,
    valid: Any = None,
    metric: Any = None,
    on_round: OnRound | None = None,
    folder: str | Path | None = None,
    progress: Any = None,
) -> Rounds:
    """Prune a trained model in rounds, in place: each removes a share of what is left, then recovers by training.

    After r rounds of rate p a share (1 - p)^r of the units is left. Scores are of the weights at the end of the round
    before. With ``how="rewind_weights"`` and a snapshot of step 0 (or of an early step) this is the lottery-ticket
    procedure: after each round the model *is* the trained ticket.

    If a round fails, also by Ctrl-C, the model is put back to the end of the last round that was finished, or
    as it was given. With a ``folder`` the same call goes on where it was, in the middle of a round too, and ends with
    the same weights; what masks removed in rounds before cannot be brought back by ``undo()`` then.

    Args:
        model: trained, dense or with masks of the same unit.
        data: what it was trained on: a pair of tensors, or batches that can be read again.
        training: how it was trained, E epochs.
        sparsities: share of the units that is gone after each round, rising.
        rounds: how many rounds of ``rate``, instead of ``sparsities``.
        rate: share of what is left that goes in each round; which units, over all layers, the allocation says.
        rates: other rates for some layers, ``{"classifier": 0.1}`` (names, globs, types; the last that matches
            counts); every layer then loses its own share of what it has left.
        how: a name of ``RECOVERIES``, as for ``sc.recover``.
        epochs: of each recovery; not needed with a snapshot.
        snapshot: of the dense training, for ``"rewind_weights"``.
        lr: of ``"finetune"``: another rate than the last one of the schedule.
        criterion: what scores the units.
        unit: what is removed together; masks stay on the model (``sc.shrink`` takes channels out).
        allocation: how many units each parameter keeps.
        targets: what to prune; None: the default targets.
        exclude: what of that stays dense.
        example_inputs: for unit ``channel``, which traces the model.
        exact: for unit ``channel``: leave alone what cannot be removed without changing the output.
        reduce: how weight scores pool to unit scores; None: as the criterion says.
        min_density: at least this share of each parameter's units stays, and one weight; None: a layer may vanish.
        seed: of the noise that random criteria read.
        score_data: batches for criteria that read data; None: the first batches of ``data``.
        init: first weights, for criteria that compare with them; None: those of the snapshot.
        valid: held-out data: each round's metric is taken on it after the recovery.
        metric: as for ``sc.fit``.
        on_round: called with each round's row and the model; not to change the model. A run that was killed inside
            the call makes it again.
        folder: where every round is kept; None: nowhere.
        progress: as for ``sc.fit``, of each round.

    Returns:
        A row per round; print it.

    Raises:
        ValueError: for choices that do not go together, a folder of another run, a round that would remove nothing,
            and for whatever ``sc.prune``, ``sc.recover`` and ``sc.fit`` refuse.

    Example:
        >>> import torch, secateur as sc
        >>> x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
        >>> net, training = nn.Linear(4, 5), Training(2, loss=nn.functional.cross_entropy)
        >>> dense = fit(net, (x, y), training, keep=(0,), progress=False)
        >>> done = prune_rounds(net, (x, y), training, rounds=3, snapshot=dense.snapshots[0], progress=False)
        >>> [row.kept for row in done.rows]
        [16, 13, 10]

    Reference:
        Frankle and Carbin 2019, "The Lottery Ticket Hypothesis", arXiv 1803.03635; Frankle, Dziugaite, Roy,
        Carbin 2019, arXiv 1903.01611; Renda, Frankle, Carbin 2020, arXiv 2003.02389.
    """
    count = _count(sparsities, rounds)
    plan = Plan(
        0.5, criterion=criterion, unit=unit, allocation=allocation, targets=targets, exclude=exclude, reduce=reduce,
        min_density=min_density, seed=seed,
    )  # fmt: skip
    first = snapshot.model if init is None and snapshot is not None else init
    cutter = Cutter(model, plan, data, training, rate, rates, sparsities, score_data, first, example_inputs, exact)
    ask = Ask(training, steps_per_epoch(data, training), epochs, snapshot, lr)
    course = course_of(how, ask)
    if snapshot is not None:
        check_same_network(model, snapshot)
    store = None if folder is None else RoundsFolder(folder, _settings(cutter, course, how))
    run = _Run(model, data, how, ask, cutter, store, {"valid": valid, "metric": metric, "progress": progress}, on_round)
    return run.all(count)


@final
@dataclass
class _Run:
    """The rounds of one call."""

    model: nn.Module
    data: Any
    how: str
    ask: Ask
    cutter: Cutter
    store: RoundsFolder | None
    fitting: Mapping[str, Any]
    on_round: OnRound | None

    def all(self, count: int) -> Rounds:
        """The rounds that are done, and the others."""
        rows = [] if self.store is None else list(self.store.rows[:count])
        if rows:
            assert self.store is not None
            self.store.restore(self.model, rows[-1].index)
        while len(rows) < count:
            rows.append(self.one(len(rows) + 1))
        return Rounds(tuple(rows))

    def cut(self, index: int) -> None:
        """Prune for this round; where it was begun before, by the masks of then."""
        begun = None if self.store is None else self.store.masks(index)
        if begun is not None:
            self.cutter.take(begun)
            return
        masks = self.cutter.cut(index)
        if self.store is not None:
            self.store.keep_masks(index, masks.unit_masks)

    def one(self, index: int) -> Round:
        """Prune and recover."""
        checkpoint = None if self.store is None else self.store.checkpoint(index)
        course = course_of(self.how, replace(self.ask, turn=index))
        with left_whole(self.model):
            self.cut(index)
            fitted = fit(
                self.model,
                self.data,
                course.training,
                start=course.start,
                snapshot=course.snapshot,
                checkpoint=checkpoint,
                **self.fitting,
            )
        masks = find_masks(self.model)
        assert masks is not None, "a cut leaves masks"
        shares, metric, cost = masks.shares(), fitted.history[-1].metric, fitted.cost
        kept = sum(masks.kept(name) for name in masks)
        row = Round(
            index, shares.units, 1 - shares.target_weights, kept, metric, fitted.steps, cost.wall_s, cost.core_s,
            None if self.store is None else str(self.store.file(index)),
        )  # fmt: skip
        if self.store is not None:
            self.store.keep(self.model, row)
        if self.on_round is not None:
            self.on_round(row, self.model)
        if self.store is not None:
            self.store.finish(row)
        return row


def _count(sparsities: Sequence[float] | None, rounds: int | None) -> int:
    if (sparsities is None) == (rounds is None):
        raise ValueError(
            "give either rounds=, how often a share `rate` of what is left goes, or sparsities=, the share that is "
            "gone after each round"
        )
    if sparsities is not None:
        return len(sparsities)
    if type(rounds) is not int or rounds < 1:
        raise ValueError(f"rounds={rounds!r}: a whole number from 1")
    return rounds


def _settings(cutter: Cutter, course: Course, how: str) -> dict[str, Any]:
    """What has to be the same for a folder to be gone on with."""
    snapshot = None if course.snapshot is None else digest_of(course.snapshot.model)
    training = {f"training {name}": text for name, text in course.training.describe().items()}
    # With masks it may stand at the end of any round: nothing can be said of where it began.
    model = None if find_masks(cutter.model) is not None else digest_of(tensors_of(cutter.model))
    return {**cutter.settings, **training, "how": how, "start": course.start, "snapshot": snapshot, "model": model}
