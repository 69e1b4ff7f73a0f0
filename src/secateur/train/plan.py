"""The plan: the frozen record of all choices of a pruning run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from secateur.core import (
    ALLOCATIONS,
    SCHEDULES,
    AllocationLike,
    CriterionLike,
    Within,
    criterion_spec,
    parse_unit,
    resolve_allocation,
    resolve_criterion,
    resolve_schedule,
    rounds_needed,
    spec_of,
    update_steps,
)
from secateur.types import NM, Reduce, Schedule, Unit

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What to prune, how much, by which criterion, where and when.

    A method is five independent choices: criterion, unit, allocation, selection window (``within``) and
    schedule. Each is a name of its table, a name with arguments (``"block(4, 1)"``), or your own function.
    ``secateur methods`` lists the names.

    Args:
        sparsity: share of units removed at the end, 0 <= sparsity < 1; None: as the n:m pattern says.
        initial: sparsity at ``begin``.
        criterion: what scores the units; low scores go first.
        unit: what is removed together; ``"2 of 4"`` or ``NM(2, 4)`` is unit weight within that pattern.
        allocation: how many units each parameter keeps.
        schedule: how sparsity grows from ``begin`` to ``end``.
        begin: optimizer step of the first update; 0: before the first step.
        end: step of the last update, which always reaches ``sparsity``; None: ``begin``.
        every: steps between updates.
        within: ``"tensor"``; ``"row"``: each output row loses the same share; ``NM``: n:m.
        targets: names, globs or types; None: convolutions, linear layers, attention projections; all coupled groups.
        exclude: what of that stays dense.
        reduce: how weight scores pool to unit scores: mean, sum, l2, rms, max; None: as the criterion says.
        min_density: at least ``max(1, ceil(min_density * n))`` units of each parameter stay (of biases none has to at
            0.0); None: a layer may vanish.
        policy: ``"hard"``: what is removed stays removed; ``"soft"``: removed values are kept aside and
            compete again at each update (Zhu & Gupta 2017, arXiv 1710.01878).
        seed: of the noise that random criteria read.
        rounds: decide each update in so many rounds, with new evidence in each and the same share of what is left going
            each time; None: as the criterion's table says (SynFlow 100, FORCE 10, most 1). A schedule spreads updates
            over the training instead; with both, every update has its rounds, and those read ``data=``.

    Raises:
        ValueError: for a value outside its range, an unknown name, or choices that do not go together.

    Example:
        >>> plan = Plan(sparsity=0.95, allocation="erk", schedule="cubic", begin=1000, end=8000, every=100)
        >>> plan.updates[-1], round(plan.sparsity_at(4500), 3)
        (8000, 0.831)
        >>> Plan.from_record(plan.to_record()) == plan
        True
    """

    sparsity: float | None
    initial: float = 0.0
    criterion: CriterionLike = "magnitude"
    unit: str | Unit | NM = "weight"
    allocation: AllocationLike = "global"
    schedule: str | Schedule = "one_shot"
    begin: int = 0
    end: int | None = None
    every: int = 1
    within: Within | str = "tensor"
    targets: Any = None
    exclude: Any = None
    reduce: Reduce | None = None
    min_density: float | None = 0.0
    policy: Literal["hard", "soft"] = "hard"
    seed: int = 0
    rounds: int | None = None

    def __post_init__(self) -> None:
        for name in ("targets", "exclude"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        self._settle_pattern()
        _check_share("sparsity", self.sparsity, below_one=True)
        _check_share("initial", self.initial, below_one=True)
        if self.min_density is not None:
            _check_share("min_density", self.min_density, below_one=False)
        if self.initial > self.final:
            raise ValueError(f"initial={self.initial} is above sparsity={self.final}; masks only grow in a plan")
        if self.policy not in ("hard", "soft"):
            raise ValueError(f"policy={self.policy!r}; known are 'hard' and 'soft'")
        if self.reduce not in (None, "mean", "sum", "l2", "rms", "max"):
            raise ValueError(f"reduce={self.reduce!r}; known are mean, sum, l2, rms and max")
        self._check_window()
        self._check_rounds()
        resolve_criterion(self.criterion)
        resolve_allocation(self.allocation)
        resolve_schedule(self.schedule)

    def _settle_pattern(self) -> None:
        """n:m may be given as the unit or as the window; it is stored as the window, with its sparsity."""
        unit, window = parse_unit(self.unit)
        within = self.within
        if isinstance(within, str) and within not in ("tensor", "row"):
            if " of " in within or ":" in within:
                _, within = parse_unit(within)
            if not isinstance(within, NM):
                raise ValueError(f"within={self.within!r}; known are 'tensor', 'row' and patterns such as '2 of 4'")
        if isinstance(window, NM):
            within = window
            object.__setattr__(self, "unit", unit.spec)
        object.__setattr__(self, "within", within)
        if within != "tensor" and unit.spec != "weight":
            raise ValueError(
                f"within={str(within)!r} selects weights inside rows; unit={unit.spec!r} has none. Use unit='weight'"
            )
        if isinstance(within, NM):
            if self.sparsity is None:
                object.__setattr__(self, "sparsity", within.sparsity)
            elif abs(self.sparsity - within.sparsity) > 1e-9:
                raise ValueError(
                    f"{within} removes {within.sparsity} of the weights, but sparsity={self.sparsity}; leave it out"
                )
        elif self.sparsity is None:
            raise ValueError(
                "sparsity is needed: the share of units to remove, e.g. sparsity=0.9 (only n:m patterns fix it)"
            )

    def _check_window(self) -> None:
        for name in ("begin", "every") + (() if self.end is None else ("end",)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < (1 if name == "every" else 0):
                raise ValueError(f"{name}={value!r}; steps are whole numbers, begin and end from 0, every from 1")
        if self.last < self.begin:
            raise ValueError(f"end={self.end} is before begin={self.begin}")
        if self.schedule == "one_shot" and self.last != self.begin:
            raise ValueError(
                f"schedule='one_shot' prunes once, at begin={self.begin}, but end={self.end}; "
                "leave end out, or choose a gradual schedule such as 'cubic'"
            )
        if self.schedule != "one_shot" and self.last == self.begin and not self.is_pattern:
            raise ValueError(f"schedule={_shown(self.schedule)} needs end > begin (begin={self.begin}, end={self.end})")
        if self.is_pattern and (self.allocation != "global" or self.min_density != 0.0):
            raise ValueError(
                f"within={self.within} fixes how much every row keeps, so allocation={_shown(self.allocation)} and "
                f"min_density={self.min_density} do not apply; leave them out"
            )
        if self.is_pattern and self.schedule != "one_shot":
            raise ValueError(
                f"within={self.within} is reached at once; a gradual schedule does not apply. Leave schedule out"
            )

    def _check_rounds(self) -> None:
        if self.rounds is not None and (type(self.rounds) is not int or self.rounds < 1):
            raise ValueError(f"rounds={self.rounds!r}: how many rounds to prune in, a whole number from 1")
        if self.is_pattern and self.rounds not in (None, 1):
            raise ValueError(f"rounds={self.rounds}: {self.within} is reached at once; leave rounds out")

    # -- what follows from the choices ----------------------------------------------------------

    @property
    def final(self) -> float:
        """The sparsity at the end."""
        assert self.sparsity is not None
        return self.sparsity

    @property
    def last(self) -> int:
        """The step of the last update."""
        return self.begin if self.end is None else self.end

    @property
    def is_pattern(self) -> bool:
        """Whether an n:m pattern fixes the sparsity."""
        return isinstance(self.within, NM)

    @property
    def window(self) -> Within:
        """The selection window: ``"tensor"``, ``"row"`` or an n:m pattern."""
        return cast("Within", self.within)  # strings were settled when the plan was made

    @property
    def parsed_unit(self) -> Unit:
        """The unit as an object."""
        return parse_unit(self.unit)[0]

    @property
    def updates(self) -> tuple[int, ...]:
        """The steps at which masks change; the last one is ``end``, whether or not ``every`` divides the window."""
        return update_steps(self.begin, self.last, self.every)

    @property
    def rounds_each(self) -> int:
        """In how many rounds an update is decided: as asked, else as the criterion's row says; patterns in one."""
        if self.is_pattern:
            return 1
        return rounds_needed(self.criterion) if self.rounds is None else self.rounds

    def sparsity_at(self, step: int) -> float:
        """The sparsity due after ``step`` optimizer steps: 0 before ``begin``, the final one from ``end`` on."""
        if step < self.begin:
            return 0.0
        if step >= self.last:
            return self.final
        schedule = resolve_schedule(self.schedule).function
        return schedule((step - self.begin) / (self.last - self.begin), self.initial, self.final)

    # -- record -----------------------------------------------------------------------------------

    def to_record(self) -> dict[str, Any]:
        """Plain JSON: every choice by its name; ``rounds`` only where given, so that older plans keep their digests.

        Raises:
            ValueError: for a function without an importable name, or targets that are modules or types: such a
                plan works, but it cannot be written down.
        """
        record = {name: getattr(self, name) for name in self._written()}
        record["criterion"] = criterion_spec(self.criterion)
        record["unit"] = self.parsed_unit.spec
        record["allocation"] = spec_of("allocation", ALLOCATIONS, self.allocation)
        record["schedule"] = spec_of("schedule", SCHEDULES, self.schedule)
        record["within"] = str(self.within)
        for name in ("targets", "exclude"):
            record[name] = _selector_record(name, record[name])
        return record

    def _written(self) -> list[str]:
        """The choices that a record names."""
        names = [field.name for field in dataclasses.fields(self)]
        return [name for name in names if name != "rounds" or self.rounds is not None]

    def describe(self) -> dict[str, str]:
        """Every choice as text, also those that cannot be written down; to tell plans apart, not to make them again."""
        described: dict[str, str] = {}
        for name in self._written():
            value: Any = self.parsed_unit if name == "unit" else getattr(self, name)
            value = getattr(value, "spec", value)
            named = value if hasattr(value, "__qualname__") else type(value) if callable(value) else None
            described[name] = str(value) if named is None else f"{named.__module__}:{named.__qualname__}"
        return described

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Plan:
        """The inverse of ``to_record``.

        A function is found again only if its module is imported already; nothing is imported.

        Raises:
            ValueError: for a key that plans do not have, and for whatever a plan refuses.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in record:
            if key not in known:
                raise ValueError(f"a plan has no {key!r}; it has {', '.join(known)}")
        return cls(**record)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name this plan; equal plans have equal digests."""
        numbers = {name: float(getattr(self, name)) for name in ("sparsity", "initial")}
        text = json.dumps({**self.to_record(), **numbers}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_share(name: str, value: Any, *, below_one: bool) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    if not good or (below_one and value == 1):
        hint = " (a share, not per cent)" if isinstance(value, (int, float)) and value > 1 else ""
        raise ValueError(f"{name}={value!r}{hint}; allowed is 0 <= {name} {'<' if below_one else '<='} 1")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else getattr(value, "__name__", repr(value))


def _selector_record(name: str, value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in cast("list[Any]", value)):
        return list(cast("list[str]", value))
    raise ValueError(f"{name}={value!r} names modules or types, which cannot be written down; use names or globs")
