"""Several criteria as one: rank or scale their unit scores over the whole network, then add."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from secateur.core.criteria import CRITERIA
from secateur.core.names import format_spec, parse_spec, resolve, spec_of
from secateur.core.typed import split, unique
from secateur.types import CriterionEntry, Tensors

__all__ = ["Combination", "How", "average_ranks", "combine", "merge", "parse_combination"]

How: TypeAlias = Literal["rank", "score"]


@dataclass(frozen=True, slots=True)
class Combination:
    """A weighted sum of criteria; make it with ``combine``.

    Attributes:
        parts: (criterion spec, weight), in the order given.
        how: ``"rank"`` or ``"score"``.
    """

    parts: tuple[tuple[str, float], ...]
    how: How = "rank"

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("combine({}): give at least one criterion with its weight, combine({'l1': 1.0})")
        if self.how not in ("rank", "score"):
            raise ValueError(f"combine(how={self.how!r}): take 'rank' or 'score'")
        for name, weight in self.parts:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ValueError(f"combine({{{name!r}: {weight!r}}}): weights are finite numbers")
            spec_of("criterion", CRITERIA, name)

    @property
    def spec(self) -> str:
        """The string that makes this combination again."""
        parts = dict(self.parts)
        if all(name.isidentifier() for name in parts):
            return format_spec("combine", (), {**parts, "how": self.how})
        return format_spec("combine", (parts,), {"how": self.how})

    @property
    def entries(self) -> tuple[tuple[CriterionEntry, float], ...]:
        """The rows of the table behind the parts, with their weights."""
        return tuple((_entry(name), weight) for name, weight in self.parts)


def combine(parts: Mapping[str, float], how: How = "rank") -> Combination:
    """Order units by several criteria at once.

    ``how="rank"``: ``s_u = sum_c a_c rank_c(u) / (N - 1)`` with the average rank of ties, 0 for the lowest of all N
    units. ``how="score"``: ``s_u = sum_c a_c s_c(u) / sum_v |s_c(v)|``. Both run over the units of all keys together.

    Args:
        parts: criterion spec -> weight; a negative weight turns a criterion round.
        how: ``"rank"`` (free of scale) or ``"score"`` (keeps the distances).

    Returns:
        A combination, usable wherever a criterion is.

    Raises:
        ValueError: for unknown criteria, weights that are no finite numbers, or another ``how``.

    Example:
        >>> combine({"l1": 1.0, "snip": 2.0}).spec
        "combine(l1=1.0, snip=2.0, how='rank')"
    """
    if not isinstance(parts, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"combine({parts!r}): give a mapping that maps each criterion to its weight, {{'l1': 1.0}}")
    return Combination(tuple((name, weight) for name, weight in parts.items()), how)


def parse_combination(spec: str) -> Combination:
    """Read ``"combine(l1=1.0, snip=2.0, how='rank')"`` back; the first argument may be a dict of specs instead.

    Raises:
        ValueError: where it is not of that form.

    Example:
        >>> parse_combination("combine(l1=1.0, snip=2.0, how='score')").how
        'score'
    """
    name, args, kwargs = parse_spec(spec)
    if name != "combine" or len(args) > 1 or not all(isinstance(argument, dict) for argument in args):
        raise ValueError(f"{spec!r}: write \"combine(l1=1.0, snip=2.0, how='rank')\"")
    how = kwargs.pop("how", "rank")
    parts: dict[Any, Any] = {**(cast("dict[Any, Any]", args[0]) if args else {}), **kwargs}
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{spec!r}: the keys are names of criteria")
    return combine(parts, how)


def merge(parts: Sequence[tuple[Tensors, float]], how: How) -> dict[str, Tensor]:
    """Unit scores of each part, with its weight -> unit scores of the combination, float64.

    Args:
        parts: (unit scores, weight), all with the same keys and shapes.
        how: ``"rank"`` or ``"score"``.

    Returns:
        Key -> scores in the unit's grid shape.

    Example:
        >>> low, high = torch.tensor([1.0, 3.0]), torch.tensor([5.0])
        >>> merge([({"a": low, "b": high}, 1.0)], "rank")["a"].tolist()
        [0.0, 0.5]
    """
    first, _ = parts[0]
    total = torch.zeros(sum(score.numel() for score in first.values()), dtype=torch.float64)
    for scores, weight in parts:
        flat = torch.cat([scores[key].flatten().double() for key in first])
        total = total.to(flat.device) + weight * (average_ranks(flat) if how == "rank" else _scaled(flat))
    pieces = split(total, [score.numel() for score in first.values()])
    return {key: piece.reshape(score.shape) for (key, score), piece in zip(first.items(), pieces, strict=True)}


def average_ranks(flat: Tensor) -> Tensor:
    """Ranks of flat scores scaled to [0, 1]; equal scores share their average rank.

    Args:
        flat: [n].

    Returns:
        float64 [n]; a single score has rank 0.

    Example:
        >>> average_ranks(torch.tensor([5.0, 1.0, 5.0])).tolist()
        [0.75, 0.0, 0.75]
    """
    place, counts = unique(flat)
    last = counts.cumsum(0).double() - 1.0
    middle = last - (counts.double() - 1.0) / 2.0
    return middle[place] / max(1, flat.numel() - 1)


def _scaled(flat: Tensor) -> Tensor:
    total = flat.abs().sum()
    return flat / total if float(total) > 0.0 else flat


def _entry(name: str) -> CriterionEntry:
    return resolve("criterion", CRITERIA, name, by_hand)


def by_hand(function: Any) -> CriterionEntry:
    """A row for a function that is in no table: it scores weights, and a unit has their mean."""
    return CriterionEntry(function, "weight", "mean", "by hand", "given by hand", "")
