"""Families of candidates: roads that differ in one strength, and which of them a goal calls for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from secateur.train.compress.goal import Goal
from secateur.train.compress.stage import Stage

__all__ = ["Family", "as_strength", "families_for"]

_PER_HALVING = 32
_LAST_MASKS = 10 * _PER_HALVING
_LAST_CHANNELS = 5 * _PER_HALVING


def as_strength(index: int) -> float:
    """Strengths lie on a grid: what is kept shrinks by 2.1 % from one to the next, and halves every 32.

    Example:
        >>> as_strength(0), as_strength(32), as_strength(64)
        (0.0, 0.5, 0.75)
    """
    return round(1 - 2.0 ** (-index / _PER_HALVING), 6)


@dataclass(frozen=True)
class Family:
    """Stages with one strength between them.

    The strength of a single searched stage is its sparsity. Several share the kept part, ``1 - strength``, in equal
    factors; a channel stage takes the root of its factor, since a layer loses inputs as well as outputs, so that the
    strength stays about the share of weights that goes.

    Attributes:
        name: for people.
        stages: in order.
    """

    name: str
    stages: tuple[Stage, ...]

    @property
    def last(self) -> int:
        """The largest index of a strength that makes sense."""
        searched = [stage for stage in self.stages if stage.searched]
        if not searched:
            return 1
        return _LAST_CHANNELS if all(stage.kind == "channels" for stage in searched) else _LAST_MASKS

    def sparsities(self, strength: float) -> tuple[float, ...]:
        """The share of units that each stage removes.

        Args:
            strength: in [0, 1).

        Returns:
            One share per stage.

        Example:
            >>> both = Family("both", (Stage(unit="channel"), Stage()))
            >>> [round(share, 3) for share in both.sparsities(0.9375)]
            [0.5, 0.75]
        """
        searched = sum(stage.searched for stage in self.stages)
        found = list[float]()
        for stage in self.stages:
            if not stage.searched:
                found.append(stage.plan(None).final)
                continue
            halved = 2 if stage.kind == "channels" and searched > 1 else 1
            found.append(round(1 - (1 - strength) ** (1 / (searched * halved)), 6))
        return tuple(found)

    def fixed(self, number: int, sparsity: float) -> Family:
        """The same with the sparsity of one stage settled.

        Args:
            number: of the stage, from 0.
            sparsity: the share of its units that goes.
        """
        settled = replace(self.stages[number], sparsity=sparsity)
        return Family(self.name, (*self.stages[:number], settled, *self.stages[number + 1 :]))

    def describe(self) -> tuple[dict[str, Any], ...]:
        """Every stage as plain JSON."""
        return tuple(stage.describe() for stage in self.stages)


def families_for(goal: Goal, stages: Sequence[Stage] | None) -> tuple[Family, ...]:
    """What to try for a goal.

    =========================  =============================================
    the goal asks for          families
    =========================  =============================================
    bytes, params              masks on weights, global and uniform
    speedup, macs              channels taken out, global and uniform
    both                       channels taken out, then masks on weights
    max_drop alone             masks on weights; channels and masks
    =========================  =============================================

    Args:
        goal: what was asked.
        stages: the user's own; then they are the one family.

    Returns:
        Families.

    Raises:
        ValueError: for stages that cannot reach the goal.

    Example:
        >>> [family.name for family in families_for(Goal(bytes=0.1), None)]
        ['weights, global', 'weights, uniform']
    """
    if stages is not None:
        if goal.of_time and all(stage.kind == "masks" for stage in stages):
            raise ValueError(
                "these stages mask weights alone, and a masked dense tensor runs as long as before: the goal's speedup "
                "or macs needs a stage that takes channels out, Stage(unit='channel'), or leave stages= out"
            )
        return (Family("stages", tuple(stages)),)
    weights = [Family(f"weights, {spread}", (Stage(allocation=spread),)) for spread in ("global", "uniform")]
    channels = [_channels(spread) for spread in ("global", "uniform")]
    if goal.of_time and not goal.of_file:
        return tuple(channels)
    both = [
        Family(f"{family.name}, then weights", (*(replace(s, epochs=0) for s in family.stages), Stage()))
        for family in channels
    ]
    if goal.of_time:
        return tuple(both)
    return tuple(weights) if goal.of_file else (weights[0], both[0])


def _channels(spread: str) -> Family:
    return Family(f"channels, {spread}", (Stage(unit="channel", allocation=spread),))
