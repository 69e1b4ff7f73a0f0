"""A run in progress: makes, measures and remembers trained points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, final

from secateur.records import Trial
from secateur.text import data_size
from secateur.train.compress.candidates import Family, as_strength
from secateur.train.compress.cheap import Range, find_range
from secateur.train.compress.figures import as_trial
from secateur.train.compress.frontier import frontier_of
from secateur.train.compress.goal import Goal, Limits, size_of
from secateur.train.compress.identity import key_of
from secateur.train.compress.journal import Journal, Shelf
from secateur.train.compress.road import trained, untrained
from secateur.train.compress.setting import Setting

__all__ = ["Run"]


@final
class Run:
    """A run in progress.

    Args:
        setting: what all candidates have in common.
        goal: what was asked.
        journal: what is known already.
        shelf: where models are kept.
        tell: called with lines for the user.
        bar: progress of ``fit``.
    """

    def __init__(
        self, setting: Setting, goal: Goal, journal: Journal, shelf: Shelf, tell: Callable[[str], None], bar: Any
    ) -> None:
        self.setting, self.goal, self.journal, self.shelf, self.tell = setting, goal, journal, shelf, tell
        self.bar = bar
        self.dense = self._known("dense", "dense", self._measure_dense)
        self.limits: Limits = goal.against(
            {"bytes": self.dense.bytes, "params": self.dense.params, "macs": self.dense.macs}
        )
        self.points: dict[str, Trial] = {}
        self.notes: list[str] = []

    def ranges(self, families: tuple[Family, ...]) -> dict[Family, Range]:
        """Where each family is worth training, by what needs no training.

        Args:
            families: to be searched.

        Returns:
            Family, with sparsities settled where that is done first -> range; without those that cannot be built.

        Raises:
            ValueError: if none can be built, with the reasons.
        """
        found = dict[Family, Range]()
        problems = list[str]()
        for family in families:
            try:
                settled = self._settled(family)
                found[settled] = span = find_range(self.setting, settled, self.limits, self.journal)
            except ValueError as error:
                problems.append(f"{family.name}: {error}")
                continue
            self._tell_range(settled, span)
        if not found:
            raise ValueError("nothing to try: " + "; ".join(problems))
        self.notes += [f"not tried: {problem}" for problem in problems]
        return found

    def point(self, family: Family, index: int) -> Trial:
        """A trained point: as it is known, or trained and measured now.

        Args:
            family: of candidates.
            index: of the strength.

        Returns:
            Its record.

        Raises:
            ValueError: what training or measuring refuses, with the candidate's name.
        """
        strength = as_strength(index)
        sparsities = family.sparsities(strength)
        key = key_of(family, sparsities)

        def train() -> Trial:
            untouched = None
            if all(stage.when == "after" for stage in family.stages):
                candidate = untrained(self.setting, family.stages, sparsities)
                untouched = self.setting.judge.score(candidate, self.setting.valid, "valid").value
            found = trained(
                self.setting, family.stages, sparsities, checkpoint=self.shelf.path(key, ""), progress=self.bar
            )
            valid = self.setting.judge.score(found.model, self.setting.valid, "valid")
            self.shelf.put(key, found.model)
            return as_trial(
                self.setting,
                found.model,
                valid,
                key=key,
                family=family.name,
                strength=strength,
                sparsities=sparsities,
                untrained=untouched,
                epochs=found.epochs,
                steps=found.steps,
                seconds=found.seconds,
            )

        try:
            trial = self._known("point", key, train)
        except ValueError as error:
            raise ValueError(f"{family.name} at sparsity {_shares(sparsities)}: {error}") from error
        self.points[key] = trial
        self.shelf.keep({each.key for each in frontier_of(self.points.values(), self.dense)} | {self.chosen().key})
        return trial

    def chosen(self) -> Trial:
        """The best point that meets the goal; the nearest where none does."""
        good = [point for point in self.points.values() if not self.limits.misses(point)]
        if good and self.goal.max_drop is not None:
            return min(good, key=lambda point: size_of(self.goal, point))
        if good:
            return max(good, key=lambda point: (point.valid.value, [-size for size in size_of(self.goal, point)]))
        return min(self.points.values(), key=lambda point: (sum(self.limits.misses(point).values()), point.key))

    def tested(self) -> None:
        """Score on test, once the search is over, every point whose model is still there."""
        if self.setting.test is None:
            return
        for key, point in self.points.items():
            self.points[key] = self.with_test(point)

    def with_test(self, trial: Trial) -> Trial:
        """The same with its score on test, where there is test data and the model is still there.

        Args:
            trial: of the run.
        """
        judge, data = self.setting.judge, self.setting.test
        if data is None:
            return trial

        def score() -> Mapping[str, Any] | None:
            if trial.key == self.dense.key:
                return judge.dense(data, "test").to_record()
            model = self.shelf.get(trial.key)
            return None if model is None else judge.score(model, data, "test").to_record()

        known = self.journal.get("test", trial.key)
        if known is None:
            known = score()
            if known is None:
                return trial
            self.journal.add("test", trial.key, known)
        return replace(trial, test=type(trial.valid).from_record(dict(known)))

    def _known(self, kind: str, key: str, make: Callable[[], Trial]) -> Trial:
        record = self.journal.get(kind, key)
        if record is not None:
            return Trial.from_record({"key": key, **record})
        trial = make()
        self.journal.add(kind, key, {name: value for name, value in trial.to_record().items() if name != "key"})
        return trial

    def known(self, kind: str, key: str, make: Callable[[], Trial]) -> Trial:
        """A trial of another kind, such as a rival's: remembered, or made now.

        Args:
            kind: of the figures.
            key: of the model.
            make: trains and measures it.
        """
        return self._known(kind, key, make)

    def _measure_dense(self) -> Trial:
        valid = self.setting.judge.dense(self.setting.valid, "valid")
        return as_trial(self.setting, self.setting.dense, valid, key="dense", family="dense")

    def _settled(self, family: Family) -> Family:
        """Channels first, by what they alone can give: so many that the clock and the multiply-adds are met."""
        kinds = [stage.kind for stage in family.stages]
        free = [stage.searched for stage in family.stages]
        if not self.goal.of_time or kinds != ["channels", "masks"] or free != [True, True]:
            return family
        alone = Family(family.name, family.stages[:1])
        sizes = {name: limit for name, limit in self.limits.sizes.items() if name == "macs"}
        span = find_range(self.setting, alone, Limits(None, self.limits.speedup, sizes), self.journal)
        index = span.last if span.least is None else span.least
        return family.fixed(0, alone.sparsities(as_strength(index))[0])

    def _tell_range(self, family: Family, span: Range) -> None:
        if not self.goal.of_size:
            return
        if span.least is None:
            near = span.nearest
            words = [f"{data_size(near['bytes'])}, {near['params']:,} parameters, {near['macs']:,} multiply-adds"]
            words += [f"{near['speedup']:.2f} x as fast"] if near.get("speedup") else []
            self.tell(f"{family.name}: no strength meets the sizes; the strongest has {', '.join(words)}")
            self.notes.append(f"{family.name}: no strength meets the sizes asked for; strongest: {', '.join(words)}")
            return
        shares = _shares(family.sparsities(as_strength(span.least)))
        self.tell(f"{family.name}: sizes are met from sparsity {shares} on ({span.tried} untrained candidates)")


def _shares(sparsities: tuple[float, ...]) -> str:
    return " then ".join(f"{share:.3f}" for share in sparsities)
