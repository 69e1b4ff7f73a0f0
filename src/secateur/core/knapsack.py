"""The most importance within a budget of cost, where cost is a function of all units that stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.types import AllocationEntry, Tensors

__all__ = ["Cost", "How", "best_subset", "greedy_subset", "knapsack"]

Cost: TypeAlias = Callable[[Mapping[str, Tensor]], float]
"""Key -> bool mask of the units that stay, in; what that costs, out."""

How: TypeAlias = Literal["greedy", "exact"]

_TABLE = 1 << 31
"""Entries of the exact solver's table, one byte each 8."""
_ROUNDS = 30


def best_subset(costs: Sequence[int], importance: Sequence[float], budget: int) -> list[int]:
    """Exact 0/1 knapsack by dynamic programming: ``max sum I_u x_u`` subject to ``sum c_u x_u <= B``.

    Args:
        costs: whole numbers from 0, one per item.
        importance: one per item; what adds nothing is left out.
        budget: B.

    Returns:
        Places of the items taken, ascending; of equally good sets the one without the later items.

    Raises:
        ValueError: for negative costs, and tables of more than 2**31 entries.

    Example:
        >>> best_subset([6, 5, 5, 3], [7, 5.5, 5.5, 2], 10)
        [1, 2]

    Reference:
        Bellman 1957 (from memory, not verified).
    """
    if any(type(cost) is not int or cost < 0 for cost in costs):
        raise ValueError(f"costs {list(costs)[:4]} ...: the exact knapsack takes whole numbers from 0")
    unit = math.gcd(*costs) or 1
    steps, budget = [cost // unit for cost in costs], min(budget, sum(costs)) // unit
    if budget < 0:
        return []
    if len(costs) * (budget + 1) > _TABLE:
        raise ValueError(
            f"{len(costs)} items and a budget of {budget} steps of {unit}: the exact table would have more than 2**31 "
            "entries; take how='greedy', or a cost in coarser steps"
        )
    best = np.zeros(budget + 1)
    taken: list[NDArray[np.uint8]] = []
    for step, gain in zip(steps, importance, strict=True):
        with_it = np.full(budget + 1, -np.inf)
        if step <= budget:
            with_it[step:] = best[: budget + 1 - step] + gain
        taken.append(np.packbits(with_it > best))
        best = np.maximum(best, with_it)
    left, found = budget, list[int]()
    for place in reversed(range(len(costs))):
        if (int(taken[place][left // 8]) >> (7 - left % 8)) & 1:
            found.append(place)
            left -= steps[place]
    return found[::-1]


def greedy_subset(costs: Sequence[float], importance: Sequence[float], budget: float) -> list[int]:
    """Items in the order of importance per cost, each taken if it still fits; none of negative importance.

    Example:
        >>> greedy_subset([6, 5, 5, 3], [7, 5.5, 5.5, 2], 10)
        [0, 3]
    """
    order = sorted(range(len(costs)), key=lambda at: -importance[at] / max(costs[at], 1e-300))
    found = list[int]()
    for place in order:
        if costs[place] <= budget and importance[place] >= 0:
            budget -= costs[place]
            found.append(place)
    return sorted(found)


def knapsack(cost: Cost, *, how: How = "greedy", steps: int = 32) -> AllocationEntry:
    """An allocation by cost: keep the most importance within ``(1 - sparsity)`` of what the dense network costs.

    ``max sum_u s_u x_u  subject to  cost(x) <= (1 - sparsity) cost(1)``: with it ``sparsity`` is the share of the cost
    that goes. Units of one key go in the order of their scores.

    ``"greedy"`` removes, of all keys, the step of least importance per cost saved, asks for all costs anew (removing
    an output channel makes the next layer cheaper), and when the budget is met gives back what fits, but nothing of
    negative score. ``"exact"`` solves the 0/1 problem for what one unit of each key costs beside all others, and again
    with less where the true cost, not additive, comes out above the budget.

    Args:
        cost: key -> bool mask of the units that stay -> what that costs: multiply-adds (``sc.costs(model, "macs",
            example_inputs)``), bytes, milliseconds predicted by ``sc.cost_table``, or measured.
        how: ``"greedy"`` or ``"exact"``; the latter needs whole numbers.
        steps: into how many parts greedy divides each key at most.

    Returns:
        A row that ``allocation=`` takes.

    Raises:
        ValueError: for costs that cannot be called, other words, a cost that is no number, and budgets that no removal
            meets.

    Example:
        >>> from secateur.core import allocate, parse_unit
        >>> from secateur.types import KeyLayout
        >>> scores = {"cheap": torch.tensor([1.0, 2.0, 3.0]), "dear": torch.tensor([1.0, 2.0, 3.0])}
        >>> price = lambda keep: int(keep["cheap"].sum()) + 10 * int(keep["dear"].sum())
        >>> layout = {key: KeyLayout((3, 1)) for key in scores}
        >>> allocate(knapsack(price), sparsity=0.5, scores=scores, layout=layout, unit=parse_unit("filter")[0])
        {'cheap': 3, 'dear': 1}

    Reference:
        Follows from the definition of the knapsack problem; costs as catalogued for FLOPs-aware pruning.
    """
    if not callable(cost):
        raise ValueError(
            f"knapsack({cost!r}): a cost is a function of the masks that stay; sc.costs(model, 'macs', example_inputs) "
            "makes one"
        )
    if how not in get_args(How):
        raise ValueError(f"knapsack(how={how!r}): take 'greedy' or 'exact'")
    if type(steps) is not int or steps < 1:
        raise ValueError(f"knapsack(steps={steps!r}): parts of a key, a whole number from 1")

    def allocation(
        scores: Tensors, sizes: Mapping[str, int], sparsity: float, floors: Mapping[str, int]
    ) -> dict[str, int]:
        for key, n in sizes.items():
            if scores[key].numel() != n:
                raise ValueError(
                    f"knapsack: earlier masks removed units of {key!r}, but it weighs all units at once; call "
                    "masks.undo() first, or take another allocation"
                )
        sack = _Sack(scores, sizes, cost, floors)
        budget = (1.0 - sparsity) * sack.cost(dict(sizes)) * (1 + 2**-40)  # a share is a rounded number
        return sack.greedy(budget, steps) if how == "greedy" else sack.exact(budget)

    return AllocationEntry(allocation, "most importance within a budget of cost", "definition", own_total=True)


class _Sack:
    """What may stay: counts per key, lowest scores gone first."""

    def __init__(self, scores: Tensors, sizes: Mapping[str, int], cost: Cost, floors: Mapping[str, int]) -> None:
        self._order = {key: torch.argsort(scores[key].flatten(), stable=True).cpu() for key in sizes}
        ordered = {key: scores[key].flatten().cpu().double()[self._order[key]] for key in sizes}
        self._lost = {key: torch.cat([score.new_zeros(1), score.cumsum(0)]) for key, score in ordered.items()}
        self._ordered, self._cost, self._floors, self._sizes = ordered, cost, floors, sizes
        self._grids = {key: scores[key].shape for key in sizes}
        self._masks: dict[tuple[str, int], Tensor] = {}

    def cost(self, counts: Mapping[str, int]) -> float:
        """Of so many units of each key."""
        found = float(self._cost({key: self._mask(key, count) for key, count in counts.items()}))
        if not math.isfinite(found):
            raise ValueError(f"the cost of {dict(counts)} is {found}: cost(keep) has to give a finite number")
        return found

    def greedy(self, budget: float, steps: int) -> dict[str, int]:
        """Down by the least importance per cost, then up again as far as it fits."""
        counts = {key: len(order) for key, order in self._order.items()}
        parts = {key: max(1, count // steps) for key, count in counts.items()}
        now = self.cost(counts)
        while now > budget:
            tries = dict[str, tuple[float, int, float]]()
            for key, count in counts.items():
                fewer = max(self._floors[key], count - parts[key])
                if fewer < count:
                    price = self.cost(counts | {key: fewer})
                    tries[key] = self._lost_between(key, fewer, count) / max(now - price, 1e-300), fewer, price
            if not tries:
                raise ValueError(_too_dear(now, budget))
            key = min(tries, key=lambda one: tries[one][0])
            counts[key], now = tries[key][1:]
        return self._refilled(counts, budget)

    def _refilled(self, counts: dict[str, int], budget: float) -> dict[str, int]:
        """Give back unit by unit, the most importance per cost first; none whose score is negative."""
        stuck = set[str]()
        now = self.cost(counts)
        while True:
            tries = dict[str, tuple[float, float]]()
            for key, count in counts.items():
                gain = self._lost_between(key, count, count + 1) if count < len(self._order[key]) else -1.0
                if key not in stuck and gain >= 0:
                    price = self.cost(counts | {key: count + 1})
                    tries[key] = gain / max(price - now, 1e-300), price
            fits = {key: rate for key, (rate, price) in tries.items() if price <= budget}
            stuck |= tries.keys() - fits.keys()
            if not fits:
                return counts
            key = max(fits, key=lambda one: fits[one])
            counts[key], now = counts[key] + 1, tries[key][1]

    def exact(self, budget: float) -> dict[str, int]:
        """The 0/1 problem with what a unit costs beside all others, until the true cost fits."""
        whole = {key: len(order) for key, order in self._order.items()}
        dense = self.cost(whole)
        least = self.cost(self._least())
        if least > budget:
            raise ValueError(_too_dear(least, budget))
        price = {key: dense - self.cost(whole | {key: count - 1}) if count else 0.0 for key, count in whole.items()}
        if any(one != int(one) for one in price.values()):
            raise ValueError(f"how='exact' takes whole numbers, but a unit costs {price}; take how='greedy'")
        free = {key: ordered[: len(ordered) - self._least()[key]] for key, ordered in self._ordered.items()}
        units = [(key, float(score)) for key, ordered in free.items() for score in ordered]
        costs, gains = [int(price[key]) for key, _ in units], [gain for _, gain in units]
        allowed = budget - (dense - sum(costs))
        for _ in range(_ROUNDS):
            counts = self._least()
            for place in best_subset(costs, gains, math.floor(allowed)):
                counts[units[place][0]] += 1
            over = self.cost(counts) - budget
            if over <= 0:
                return counts
            allowed -= over
        raise ValueError(f"no exact choice found that costs at most {budget:g}; take how='greedy'")

    def _least(self) -> dict[str, int]:
        return {key: min(self._floors[key], len(order)) for key, order in self._order.items()}

    def _lost_between(self, key: str, fewer: int, more: int) -> float:
        n = len(self._order[key])
        return float(self._lost[key][n - fewer] - self._lost[key][n - more])

    def _mask(self, key: str, count: int) -> Tensor:
        found = self._masks.get((key, count))
        if found is None:
            order = self._order[key]
            found = torch.zeros(len(order), dtype=torch.bool)
            found[order[len(order) - count :]] = True
            found = found.reshape(self._grids[key])
            self._masks = {one: mask for one, mask in self._masks.items() if one[0] != key} | {(key, count): found}
        return found


def _too_dear(least: float, budget: float) -> str:
    return f"with the least that every key may keep the cost is {least:g}, above {budget:g}: lower sparsity="
