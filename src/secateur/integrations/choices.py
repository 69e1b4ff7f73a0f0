"""A plan, or the choices of one whose steps are shares of a training that has not begun."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from secateur.train.plan import Plan

__all__ = ["Choices", "Moment"]

Moment = int | float
"""An optimizer step (int), or a share of all of them (float): 0.1 is a tenth of training, 1.0 its end."""

_UPDATES = 100
_TRIAL = 10**9
"""Steps of a training as long as any: what is wrong then is wrong always."""


@final
@dataclass(frozen=True)
class Choices:
    """What a callback was given.

    Args:
        plan: a whole plan; no other choice beside it.
        begin: of the first update.
        end: of the last one; None: ``begin``.
        every: steps, or share of training, between updates; None: a hundred updates at most.
        others: all other choices, as for ``Plan``.

    Raises:
        ValueError: for whatever a plan refuses, as far as that can be seen before the number of steps is known.

    Example:
        >>> choices = Choices(begin=0.1, end=0.7, others={"sparsity": 0.8})
        >>> plan = choices.plan_for(5000)
        >>> plan.begin, plan.end, plan.every, plan.schedule
        (500, 3500, 30, 'cubic')
    """

    plan: Plan | None = None
    begin: Moment = 0
    end: Moment | None = None
    every: Moment | None = None
    others: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        timed = self.begin != 0 or self.end is not None or self.every is not None
        if self.plan is not None and not isinstance(self.plan, Plan):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"plan={self.plan!r}: give a Plan, or its choices by name: SecateurCallback(sparsity=0.8)")
        if self.plan is not None and (self.others or timed):
            named = [*self.others, *(["begin, end or every"] if timed else [])]
            raise ValueError(
                f"a plan and {', '.join(named)} beside it: put all into the plan, dataclasses.replace(plan, ...), or "
                "leave the plan out"
            )
        known = [entry.name for entry in dataclasses.fields(Plan)]
        for name in self.others:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                meant = f"did you mean {near[0]!r}?" if near else f"a plan has {', '.join(known)}"
                raise ValueError(f"{name!r} is no choice of a plan and no option of this callback; {meant}")
        if timed and not self.others:
            raise ValueError("begin, end and every belong to a plan: say what to prune, e.g. sparsity=0.8")
        if self.others:
            self._check_moments()
            self.plan_for(None if not self.shared else _TRIAL)

    @property
    def holds_only(self) -> bool:
        """Whether there is nothing to prune: the model's masks are held as they are."""
        return self.plan is None and not self.others

    @property
    def shared(self) -> bool:
        """Whether the plan depends on the number of steps."""
        return any(isinstance(moment, float) for moment in (self.begin, self.end, self.every))

    def plan_for(self, steps: int | None) -> Plan | None:
        """The plan for a training of so many optimizer steps; None where masks are only held.

        Args:
            steps: optimizer steps of the whole training; None: unknown.

        Raises:
            ValueError: if the plan depends on the number and it is unknown, or training is too short for the plan.
        """
        if self.plan is not None or not self.others:
            return self.plan
        if self.shared and steps is None:
            raise ValueError(
                f"begin={self.begin}, end={self.end}, every={self.every} are shares of training, and its number of "
                "steps is unknown; limit it (max_steps=), or give steps as whole numbers"
            )
        begin = _step(self.begin, steps)
        end = None if self.end is None else _step(self.end, steps)
        if end is not None and end == begin and self.shared:
            raise ValueError(
                f"begin={self.begin} and end={self.end} are both step {begin} of a training of {steps} steps; train "
                "longer, or widen the window"
            )
        every = _often((end or begin) - begin) if self.every is None else _step(self.every, steps)
        if isinstance(self.every, float):
            every = max(1, every)
        schedule = {"schedule": "one_shot" if end is None else "cubic"}
        return Plan(**{"sparsity": None, **schedule, **self.others, "begin": begin, "end": end, "every": every})

    def _check_moments(self) -> None:
        given = {"begin": self.begin, "end": self.end, "every": self.every}
        for name, value in given.items():
            if value is not None and type(value) not in (int, float):
                raise ValueError(f"{name}={value!r}: give a step (a whole number), or a share of training (a float)")
            if isinstance(value, float) and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: floats are shares of training, from 0 to 1; steps are whole numbers")
        window = {type(value) for value in (self.begin, self.end) if value is not None and value != 0}
        if window == {int, float}:
            raise ValueError(
                f"begin={self.begin} and end={self.end}: one is a step, the other a share of training; give both as "
                "whole numbers, or both as floats"
            )
        if isinstance(self.end, float) and self.end <= self.begin:
            raise ValueError(f"end={self.end} is not after begin={self.begin}")


def _step(moment: Moment, steps: int | None) -> int:
    if not isinstance(moment, float):
        return moment
    assert steps is not None, "plan_for refuses shares of an unknown number"
    return math.floor(moment * steps + 0.5)


def _often(window: int) -> int:
    return max(1, math.ceil(window / _UPDATES))
