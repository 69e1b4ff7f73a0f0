"""Budgets, not ratios: which units go so that what is left takes at most so many parameters, bytes, milliseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, final

from torch import Tensor, nn

from secateur.measure.latency import latency
from secateur.model.graph.cutting import Keep
from secateur.model.graph.group import Group, Groups
from secateur.text import data_size, quantity, three
from secateur.train.cost import CostModel
from secateur.train.ranking import Ranking, Spread
from secateur.train.widths import RoundTo, allowed_widths, multiples_of

__all__ = ["Budget", "Choice", "OutOfReach", "Search"]

Keeps = dict[str, Tensor]

_WIDTHS = (1, 8, 16, 32)
"""Multiples that ``round_to="measured"`` tries."""
_LATENCY_STEPS = 6
_SHOWN = 3


@final
class OutOfReach(ValueError):
    """A budget that no removal meets."""


@dataclass(frozen=True)
class Budget:
    """What the smaller model may take at most; several hold together.

    Attributes:
        params: parameters.
        macs: multiply-adds of one sample.
        bytes: of the state dict as a plain safetensors file.
        latency_ms: median milliseconds per call on the example inputs, one thread, measured.
        sparsity: share of the units to remove: exactly ``floor(S * N + 0.5)`` of N where nothing else asks for more.

    Each but ``sparsity`` is a fraction of the dense model's figure up to 1.0, and an absolute figure above.

    Raises:
        ValueError: for a figure that is no positive number.

    Example:
        >>> Budget(macs=0.5, params=1_000).given
        {'params': 1000, 'macs': 0.5}
    """

    params: float | None = None
    macs: float | None = None
    bytes: float | None = None
    latency_ms: float | None = None
    sparsity: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ValueError(f"{name}={value!r}: give a fraction of the dense model in (0, 1], or a figure above 1")
        if self.sparsity is not None and self.sparsity >= 1:
            raise ValueError(f"sparsity={self.sparsity!r}: the share of units to remove lies in (0, 1)")

    @property
    def given(self) -> dict[str, float]:
        """What was asked."""
        asked = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in asked.items() if value is not None}

    def limits(self, dense: Mapping[str, float | None], units: int) -> dict[str, float]:
        """In absolute figures, without the latency; ``sparsity`` becomes the units that may stay."""
        found = dict[str, float]()
        for name, value in self.given.items():
            whole = dense.get(name)
            if name == "sparsity":
                found["units"] = units - math.floor(value * units + 0.5)
            elif whole is not None:
                found[name] = value * whole if value <= 1 else value
        return found


@dataclass(frozen=True)
class Choice:
    """What a search found.

    Attributes:
        keep: group -> bool mask of its units.
        limits: the budget in absolute figures.
        latency: milliseconds of dense and smaller model, where they were measured.
        notes: on what was measured.
    """

    keep: Keeps
    limits: dict[str, float] = field(default_factory=dict[str, float])
    latency: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


@final
class Search:
    """Finds how many units stay: one order of all units, and the fewest steps along it that meet the budget.

    Args:
        root: the dense model.
        groups: its groups.
        scores: of the groups that may lose something.
        start: what is gone already.
        costs: of a removal.
        build: makes the smaller model, or raises.
        inputs: for latency, as the user gave them.
    """

    def __init__(
        self,
        root: nn.Module,
        groups: Groups,
        scores: Mapping[str, Tensor],
        start: Keep,
        costs: CostModel,
        build: Callable[[Keep], nn.Module],
        inputs: Any,
    ) -> None:
        self._root, self._groups, self._scores, self._start = root, groups, scores, start
        self._costs, self._build, self._inputs = costs, build, inputs

    def run(self, budget: Budget, round_to: RoundTo = None, spread: Spread = "global") -> Choice:
        """The units that stay.

        Args:
            budget: all of it has to hold.
            round_to: multiples of widths.
            spread: how scores of different groups compare.

        Returns:
            The choice.

        Raises:
            OutOfReach: if the budget cannot be met, with the least figure and what holds it.
            ValueError: for widths that name no layer, and where a candidate does not pass its probes.
        """
        dense = self._costs({})
        units = sum(self._groups[name].units for name in self._scores)
        limits = budget.limits({"params": dense.params, "macs": dense.macs, "bytes": dense.bytes}, units)
        if budget.macs is not None and not dense.macs:
            raise ValueError(
                f"macs={budget.macs}: no multiply-add is counted here{self._uncounted()}; give params= instead"
            )
        if round_to == "measured":
            return self._measured_widths(budget, limits, spread)
        ranking = self._ranking(round_to, spread)
        step = self._steps(ranking, limits)
        if budget.latency_ms is None:
            return Choice(ranking.refilled(step, self._holds(limits)), limits)
        return self._fast_enough(ranking, step, budget.latency_ms, limits)

    def _ranking(self, round_to: RoundTo, spread: Spread) -> Ranking:
        chosen = {name: self._groups[name] for name in self._scores}
        multiples = multiples_of(round_to, chosen)
        widths = {name: allowed_widths(group, multiples[name]) for name, group in chosen.items()}
        return Ranking(self._scores, self._start, widths, spread)

    def _holds(self, limits: Mapping[str, float]) -> Callable[[Keep], bool]:
        def check(keep: Keep) -> bool:
            figures = self._figures(keep)
            return all(figures[name] <= limit for name, limit in limits.items())

        return check

    def _figures(self, keep: Keep) -> dict[str, float]:
        cost = self._costs(keep)
        stay = sum(int(keep[name].sum()) for name in self._scores)
        return {"params": cost.params, "macs": cost.macs or 0, "bytes": cost.bytes, "units": stay}

    def _steps(self, ranking: Ranking, limits: Mapping[str, float]) -> int:
        step = ranking.first(self._holds(limits))
        if step is None:
            raise OutOfReach(self._too_little(ranking.keep(ranking.steps), limits))
        return step

    def _too_little(self, least: Keeps, limits: Mapping[str, float]) -> str:
        """Which budget cannot be met, the least there is, and the layers that hold it."""
        figures = self._figures(least)
        name = next(name for name, limit in limits.items() if figures[name] > limit)
        show = _shown(name)
        holders = self._costs.macs_by_tensor(least) if name == "macs" else self._costs.parameters_by_tensor(least)
        largest = sorted(holders.items(), key=lambda item: -item[1])[:_SHOWN]
        held = "; ".join(f"{tensor}: {quantity(count)} ({self._why(tensor)})" for tensor, count in largest)
        return (
            f"the budget {name} <= {show(limits[name])} cannot be met: with the least that every group may keep, "
            f"{show(figures[name])} are left. Most of it: {held}{self._uncounted() if name == 'macs' else ''}"
        )

    def _uncounted(self) -> str:
        names = self._costs.uncounted[:_SHOWN]
        return f" (no rule counts those of {', '.join(map(repr, names))})" if names else ""

    def _why(self, tensor: str) -> str:
        members = [(group, name in self._scores) for name, group in self._groups.items() if _touches(group, tensor)]
        frozen = self._groups.frozen.get(f"{tensor} out")
        if frozen:
            return frozen
        if members and not all(chosen for _, chosen in members):
            return "targets= and exclude= leave it out"
        return "as narrow as it may get" if members else "no group reaches it"

    def _fast_enough(self, ranking: Ranking, step: int, asked: float, limits: dict[str, float]) -> Choice:
        """Bisection by the clock; what is taken at the end was measured, and held."""
        low, high = step, ranking.steps
        dense_ms, small_ms = self._time(ranking.keep(low), rounds=10)
        if small_ms > _limit(asked, dense_ms):
            for _ in range(_LATENCY_STEPS):
                middle = (low + high) // 2
                dense_ms, small_ms = self._time(ranking.keep(middle), rounds=10)
                low, high = (low, middle) if small_ms <= _limit(asked, dense_ms) else (middle, high)
        else:
            high = low
        for _ in range(4):  # a clock is noisy: what held once has to hold again
            dense_ms, small_ms = self._time(ranking.keep(high), rounds=30)
            if small_ms <= _limit(asked, dense_ms):
                limits["latency_ms"] = _limit(asked, dense_ms)
                return Choice(ranking.keep(high), limits, (dense_ms, small_ms))
            high = min(ranking.steps, high + max(1, (ranking.steps - high) // 4))
        raise OutOfReach(
            f"the budget latency_ms <= {three(_limit(asked, dense_ms))} cannot be met: {three(small_ms)} ms were "
            f"measured with {_widths(ranking.keep(high))}, {three(dense_ms)} ms dense. {self._held_by_time()}"
        )

    def _held_by_time(self) -> str:
        fixed = list(self._groups.frozen)[:_SHOWN]
        return f"What cannot lose anything: {', '.join(fixed) or 'nothing'}; the rest is the cost of calling the layers"

    def _time(self, keep: Keep, rounds: int) -> tuple[float, float]:
        models = {"dense": self._root, "small": self._build(keep)}
        found = latency(models, self._inputs, rounds=rounds, budget_s=5.0)
        return found["dense"].median_ms, found["small"].median_ms

    def _measured_widths(self, budget: Budget, limits: dict[str, float], spread: Spread) -> Choice:
        """Of several multiples, at no more multiply-adds than without rounding, what runs fastest."""
        if budget.latency_ms is not None:
            return self._most_in_time(budget, spread)
        plain = self.run(budget, None, spread)
        cost = self._costs(plain.keep)
        stricter = limits | ({"macs": cost.macs} if cost.macs is not None else {"params": cost.params})
        keeps: dict[int, Keeps] = {1: plain.keep}
        for multiple in _WIDTHS[1:]:
            ranking = self._ranking(multiple, spread)
            step = ranking.first(self._holds(stricter))
            if step is not None:
                keeps[multiple] = ranking.refilled(step, self._holds(stricter))
        models = {"dense": self._root} | {str(multiple): self._build(keep) for multiple, keep in keeps.items()}
        found = {name: row.median_ms for name, row in latency(models, self._inputs, budget_s=20.0).items()}
        best = min(keeps, key=lambda multiple: found[str(multiple)])
        told = ", ".join(f"{multiple}: {three(found[str(multiple)])} ms" for multiple in keeps)
        note = f"widths in multiples of {best}, the fastest here of {told} (dense {three(found['dense'])} ms)"
        return Choice(keeps[best], plain.limits, (found["dense"], found[str(best)]), (note,))

    def _most_in_time(self, budget: Budget, spread: Spread) -> Choice:
        """Of several multiples, all within the milliseconds, what keeps the most multiply-adds."""
        found, problem = dict[int, Choice](), ""
        for multiple in _WIDTHS:
            try:
                found[multiple] = self.run(budget, multiple, spread)
            except OutOfReach as error:  # too coarse for these widths; another multiple may do
                problem = problem or str(error)
        if not found:
            raise OutOfReach(problem)
        left = {multiple: self._figures(choice.keep) for multiple, choice in found.items()}
        best = max(found, key=lambda multiple: (left[multiple]["macs"], left[multiple]["params"]))
        told = ", ".join(f"{multiple}: {quantity(left[multiple]['macs'])}" for multiple in found)
        note = f"widths in multiples of {best}, which keep the most multiply-adds within the time, of {told}"
        return replace(found[best], notes=(note,))


def _shown(name: str) -> Callable[[float], str]:
    return (lambda count: data_size(int(count))) if name == "bytes" else quantity


def _limit(asked: float, dense_ms: float) -> float:
    return asked * dense_ms if asked <= 1 else asked


def _touches(group: Group, tensor: str) -> bool:
    return any(member.name == tensor for member in group.members)


def _widths(keep: Keeps) -> str:
    return ", ".join(f"{int(mask.sum())} units of {name}" for name, mask in list(keep.items())[:_SHOWN])
