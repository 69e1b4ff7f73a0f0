"""What is wrong with a recipe: every mistake with its line, table and key, all of them told at once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["BadRecipe", "Lines", "Mistake", "Place", "nearest", "shown"]

Place: TypeAlias = tuple[str | int, ...]
"""Where something stands: ``("goal", "max_drop")``; stages count from 0, ``("stage", 0, "unit")``."""

Lines: TypeAlias = dict[Place, int]
"""Place -> line of the file."""

_LONGEST = 60


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        place: table and key.
        text: what is wrong with it, and what is allowed.
        given: the value as TOML; empty where there is none to show.
    """

    place: Place
    text: str
    given: str = ""

    def line(self, lines: Lines) -> int:
        """The line of the file, of the table where the key has none; 0 if not even that is known."""
        for length in range(len(self.place), 0, -1):
            if self.place[:length] in lines:
                return lines[self.place[:length]]
        return 0

    def __str__(self) -> str:
        table, rest = str(self.place[0]), self.place[1:]
        name = f"[{table}]"
        if table == "stage":
            name = "[[stage]]"
            if rest and isinstance(rest[0], int):
                name, rest = f"{name} {rest[0] + 1}", rest[1:]
        key = "".join(f" {part}" for part in rest[:1])
        return f"{name}{key}{f' = {self.given}' if self.given else ''}: {self.text}"


class BadRecipe(ValueError):
    """A recipe with mistakes.

    Args:
        file: its name, as the user gave it.
        mistakes: at least one.
        lines: of the file.

    Example:
        >>> print(BadRecipe("r.toml", [Mistake(("goal", "drop"), "there is no such key")], {("goal", "drop"): 7}))
        r.toml has 1 mistake; nothing was done:
          line 7: [goal] drop: there is no such key
    """

    def __init__(self, file: str, mistakes: Sequence[Mistake], lines: Lines) -> None:
        self.mistakes = tuple(sorted(mistakes, key=lambda mistake: mistake.line(lines)))
        told = []
        for mistake in self.mistakes:
            line = mistake.line(lines)
            told.append(f"  {f'line {line}: ' if line else ''}{mistake}")
        many = f"{len(told)} mistakes" if len(told) > 1 else "1 mistake"
        super().__init__("\n".join([f"{file} has {many}; nothing was done:", *told]))


def nearest(name: str, known: Iterable[str]) -> str:
    """The known word that is most like this one, as the end of a sentence.

    Example:
        >>> nearest("max_dorp", ["max_drop", "bytes"]), nearest("x", ["max_drop"])
        ("; did you mean 'max_drop'?", '.')
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def shown(value: Any) -> str:
    """A value as it would stand in TOML, cut where it is long.

    Example:
        >>> shown(True), shown([1, "a"]), shown({"a": 1.5})
        ('true', '[1, "a"]', '{"a": 1.5}')
    """
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
