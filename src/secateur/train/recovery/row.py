"""What is remembered of each round."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secateur.text import three

__all__ = ["Round", "Rounds"]


@dataclass(frozen=True)
class Round:
    """One round of pruning and recovery.

    Attributes:
        index: from 1.
        sparsity: share of the target units that is gone.
        weights_left: share of the target weights that stays.
        kept: target weights that stay.
        metric: on ``valid`` after the recovery; None without ``valid``.
        steps: optimizer steps that the recovery made.
        wall_s: seconds that they took.
        core_s: processor seconds that they took.
        file: the round's model in the folder, for ``sc.load``; None without a folder.
    """

    index: int
    sparsity: float
    weights_left: float
    kept: int
    metric: float | None
    steps: int
    wall_s: float
    core_s: float
    file: str | None = None

    def to_record(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Round:
        """The inverse of ``to_record``."""
        return cls(**record)


@dataclass(frozen=True)
class Rounds:
    """All rounds; printing it shows a table.

    Attributes:
        rows: one per round.
    """

    rows: tuple[Round, ...]

    def __str__(self) -> str:
        lines = ["round  units gone  weights left      metric     steps     seconds"]
        lines += [
            f"{row.index:5d}  {row.sparsity:10.2%}  {row.weights_left:7.2%} {_count(row.kept)}  "
            f"{three(row.metric):>6}  {row.steps:8,d}  {three(row.wall_s):>10}"
            for row in self.rows
        ]
        return "\n".join(lines)

    def to_record(self) -> list[dict[str, Any]]:
        """Plain JSON."""
        return [row.to_record() for row in self.rows]


def _count(number: int) -> str:
    return f"({number:,})"
