"""One order for all units of all groups, and how many of each group stay at each point of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias, final, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.model.graph.cutting import Keep

__all__ = ["Ranking", "Spread"]

Spread: TypeAlias = Literal["global", "uniform"]
"""How units of different groups compare: by score, or by their place in their own group."""


@final
class Ranking:
    """The units in the order in which they go; ``keep(n)`` is what stays when the first ``n`` steps are taken.

    Scores of different groups are not of one scale, so each is divided by the mean of its group,
    ``s_u / mean_group |s|``. ``"uniform"`` compares ``(rank in the group + 0.5) / units`` instead, so that all groups
    lose the same share. Of equal scores the first group, and in it the first unit, goes first.

    Args:
        scores: group -> scores of its units; low ones go first. Groups that are not named lose nothing.
        start: group -> bool mask; what is gone there is gone from the first step on.
        widths: group -> entry k: how many stay where k would.
        spread: ``"global"`` or ``"uniform"``.

    Attributes:
        steps: how many there are; after the last of them each group has its smallest width.

    Raises:
        ValueError: for another word.

    Example:
        >>> scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([10.0, 50.0])}
        >>> ranking = Ranking(scores, {}, {"a": [1, 1, 2, 3], "b": [1, 1, 2]})
        >>> {name: mask.tolist() for name, mask in ranking.keep(2).items()}
        {'a': [False, True, True], 'b': [False, True]}
        >>> [int(mask.sum()) for mask in ranking.keep(ranking.steps).values()]
        [1, 1]
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        start: Keep,
        widths: Mapping[str, list[int]],
        spread: Spread = "global",
    ) -> None:
        if spread not in get_args(Spread):
            raise ValueError(
                f"allocation={spread!r}: a budget is spread 'global' (by score) or 'uniform' (equal shares)"
            )
        values = {name: _comparable(score, spread) for name, score in scores.items()}
        order = _places(values, spread)
        self._start = {name: mask.cpu().bool() for name, mask in start.items()}
        for name, places in order.items():
            if name in self._start:
                places[~self._start[name].numpy()] = -1
        self._places = order
        self._widths = widths
        self.steps = 1 + max((int(places.max()) for places in order.values()), default=-1)

    def keep(self, step: int) -> dict[str, Tensor]:
        """Group -> bool mask of the units that stay after so many steps."""
        return self.keep_counts(self.counts(step))

    def counts(self, step: int) -> dict[str, int]:
        """Group -> how many units stay after so many steps."""
        return {
            name: min(self._widths[name][int((places >= step).sum())], int((places >= 0).sum()))
            for name, places in self._places.items()
        }

    def keep_counts(self, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Group -> bool mask in which so many units, the last in the order, stay."""
        found = {name: mask.clone() for name, mask in self._start.items()}
        for name, kept in counts.items():
            last = np.argsort(self._places[name], kind="stable")[len(self._places[name]) - kept :]
            found[name] = torch.zeros(len(self._places[name]), dtype=torch.bool)
            found[name][last.tolist()] = True
        return found

    def refilled(self, step: int, holds: Callable[[Keep], bool]) -> dict[str, Tensor]:
        """What stays after so many steps, and what can come back: rounding takes more than was needed.

        Groups are widened by one allowed width at a time as long as ``holds``, those first whose best removed unit
        comes last in the order.
        """
        counts, stuck = self.counts(step), set[str]()
        while True:
            wider = {
                name: (int(np.sort(self._places[name])[len(self._places[name]) - kept - 1]), self._above(name, kept))
                for name, kept in counts.items()
                if name not in stuck and self._above(name, kept) > kept
            }
            if not wider:
                return self.keep_counts(counts)
            name = max(wider, key=lambda one: wider[one][0])
            if holds(self.keep_counts(counts | {name: wider[name][1]})):
                counts[name] = wider[name][1]
            else:
                stuck.add(name)

    def _above(self, name: str, kept: int) -> int:
        """The next width of a group that is allowed; the same where there is none."""
        most = int((self._places[name] >= 0).sum())
        return next((width for width in self._widths[name][kept:] if kept < width <= most), kept)

    def first(self, holds: Callable[[Keep], bool]) -> int | None:
        """The fewest steps after which something holds that goes on to hold; None where it never does."""
        if not holds(self.keep(self.steps)):
            return None
        low, high = 0, self.steps
        while low < high:
            middle = (low + high) // 2
            if holds(self.keep(middle)):
                high = middle
            else:
                low = middle + 1
        return high


def _comparable(score: Tensor, spread: Spread) -> NDArray[np.float64]:
    values: NDArray[np.float64] = score.detach().double().cpu().numpy()
    if spread == "uniform":
        ranks = np.empty(len(values))
        ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
        return (ranks + 0.5) / len(values)
    mean = float(np.abs(values).mean())
    return values / mean if mean > 0 else np.zeros_like(values)


def _places(values: Mapping[str, NDArray[np.float64]], spread: Spread) -> dict[str, NDArray[np.int64]]:
    """Place of each unit in the order of all; under ``"uniform"`` equal values share one, so that equal groups do."""
    if not values:
        return {}
    joined = np.concatenate(list(values.values()))
    if spread == "uniform":
        _, places = np.unique(joined, return_inverse=True)
    else:
        places = np.empty(len(joined), np.int64)
        places[np.argsort(joined, kind="stable")] = np.arange(len(joined))
    parts = np.split(places.astype(np.int64), np.cumsum([len(value) for value in values.values()])[:-1])
    return dict(zip(values, parts, strict=True))
