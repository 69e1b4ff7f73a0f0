"""What came of it: one row per runtime, with a time or the reason why there is none."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from secateur.records.base import Jsonable
from secateur.records.measured import Environment

__all__ = ["RivalRow", "Rivals", "Status"]

Status: TypeAlias = Literal["timed", "wrong", "not installed", "lost"]


@dataclass(frozen=True)
class RivalRow(Jsonable):
    """One runtime.

    Attributes:
        name: in the table of runtimes; the process that stands in a second time has "again" behind it.
        precision: "float32" or "bfloat16".
        dense: whether it multiplies the zeros too.
        version: of the package that it comes from.
        status: "timed"; "wrong": its outputs are off by more than ``tolerance``, so its time counts for nothing;
            "not installed"; "lost": it could not be built, died, or did not answer.
        why: where it was not timed; what would help.
        stderr: the end of what a lost process wrote.
        off_by: largest difference to eager torch; None where there was no output.
        tolerance: largest difference allowed, as a share of the largest output.
        median_ms: over the rounds, of milliseconds per call.
        p10_ms: 10 % quantile over the rounds.
        p90_ms: 90 % quantile over the rounds.
        least_ms: least of all blocks.
        gain: time of the best dense float32 runtime / time of this one, median over the rounds.
        gain_range: 10 and 90 % quantiles of the same; with 1 inside, the two are not told apart.
        twin_of: name of the row that this one repeats in a second process.
        ms: milliseconds per call, one number per round; round i of all rows stands side by side.
    """

    name: str
    precision: str
    dense: bool
    version: str
    status: str
    why: str = ""
    stderr: str = ""
    off_by: float | None = None
    tolerance: float | None = None
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    least_ms: float | None = None
    gain: float | None = None
    gain_range: tuple[float, float] | None = None
    twin_of: str = ""
    ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rivals(Jsonable):
    """The same network on the same input in several runtimes, each in a process of its own, in turns.

    Attributes:
        title: what was measured.
        batch: length of axis 0 of the input.
        threads: of every runtime.
        rounds: how often each had its turn.
        turn_s: how long a turn was.
        rows: in the order asked for.
        best: name of the fastest dense float32 row; None where none was timed.
        spread: 10 and 90 % quantiles of the first runtime against itself in a second process, round by round and made
            symmetric: how far equal things are apart here. None where it was not timed twice.
        notes: what the reader should know.
        environment: where.
    """

    title: str
    batch: int
    threads: int
    rounds: int
    turn_s: float
    rows: tuple[RivalRow, ...]
    best: str | None
    spread: tuple[float, float] | None
    notes: tuple[str, ...]
    environment: Environment

    def __getitem__(self, name: str) -> RivalRow:
        """The row of that name.

        Raises:
            KeyError: if there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r} is not among {[row.name for row in self.rows]}")

    def __str__(self) -> str:
        """The table as text."""
        from secateur.records.rivals_text import as_text

        return as_text(self)

    def print(self) -> None:
        """The table on standard output."""
        import sys

        sys.stdout.write(f"{self}\n")

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """This record as JSON; ``Rivals.from_record(json.loads(text))`` brings it back.

        Args:
            path: file to write it to as well.

        Returns:
            The text.
        """
        text = json.dumps(self.to_record(), indent=1) + "\n"
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text
