"""A recipe checked as a whole: keys, values, functions, and what does not go together."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from secateur.cli.recipe.agreement import check_data, check_goal, check_stages, check_training
from secateur.cli.recipe.mistakes import BadRecipe, Lines, Mistake, Place, nearest, shown
from secateur.cli.recipe.reachable import find_functions, make_importable
from secateur.cli.recipe.reading import read_toml
from secateur.cli.recipe.schema import SINGLE, Data, Goals, Model, Output, Recover, Search, StageTable, Table

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["Recipe", "read_recipe"]


@dataclass(frozen=True)
class Recipe:
    """A recipe without mistakes, as far as can be told before anything is built.

    Attributes:
        path: of the file.
        text: of the file.
        lines: place -> line.
        functions: place -> the user's function.
    """

    path: Path
    text: str
    lines: Lines
    functions: Mapping[Place, Callable[..., Any]]
    model: Model
    data: Data
    stages: tuple[StageTable, ...]
    recover: Recover
    goal: Goals
    search: Search
    output: Output

    @property
    def checkpoint(self) -> Path | None:
        """The file of ``[model] checkpoint``."""
        name = self.model.checkpoint
        return None if name is None else self.path.parent / name

    def refuse(self, mistakes: list[Mistake]) -> None:
        """Raise what was found.

        Raises:
            BadRecipe: if there is any.
        """
        if mistakes:
            raise BadRecipe(str(self.path), mistakes, self.lines)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe; modules it names are imported, nothing is called.

    Args:
        path: of the TOML file.

    Returns:
        The recipe.

    Raises:
        BadRecipe: with every mistake.
        ValueError: if the file is no TOML at all.
    """
    text, content, lines = read_toml(path)
    make_importable(path.resolve().parent)
    functions, mistakes = find_functions(content)
    tables: dict[str, Any] = {}
    for name in content:
        if name not in SINGLE and name != "stage":
            known = (*SINGLE, "stage")
            mistakes.append(
                Mistake((name,), f"there is no such table{nearest(name, known)} Tables: {', '.join(known)}")
            )
    for name, (kind, needed) in SINGLE.items():
        tables[name] = _table(kind, (name,), content, needed, mistakes)
    stages = _stages(content.get("stage", []), mistakes)
    checkpoint = tables["model"] and tables["model"].checkpoint
    if checkpoint and not (path.parent / checkpoint).is_file():
        mistakes.append(Mistake(("model", "checkpoint"), _missing(path.parent / checkpoint), shown(checkpoint)))
    if tables["output"] and (path.parent / tables["output"].folder).is_file():
        text_ = "this is a file; name a folder, which is made where there is none"
        mistakes.append(Mistake(("output", "folder"), text_, shown(tables["output"].folder)))
    mistakes += check_stages(stages, functions)
    right = tuple(stage for stage in stages if stage is not None)
    mistakes += [] if tables["data"] is None else check_data(tables["data"])
    mistakes += [] if tables["goal"] is None else check_goal(tables["goal"], right)
    mistakes += [] if tables["recover"] is None else check_training(tables["recover"], functions)
    if tables["search"] and tables["search"].method == "optuna" and importlib.util.find_spec("optuna") is None:
        text_ = 'optuna is not installed: pip install "secateur[search]"; "bisect" needs nothing'
        mistakes.append(Mistake(("search", "method"), text_, shown("optuna")))
    if mistakes:
        raise BadRecipe(str(path), mistakes, lines)
    return Recipe(path, text, lines, functions, stages=right, **tables)


def _missing(path: Path) -> str:
    if path.is_dir():
        return "this is a folder; name the file of the weights"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}; paths are relative to the recipe"
    known = [file.name for file in path.parent.iterdir() if file.is_file()]
    return f"there is no such file beside the recipe{nearest(path.name, known)}"


def _table(kind: type[Table], place: Place, content: Mapping[str, Any], needed: bool, mistakes: list[Mistake]) -> Any:
    """One table, or None where it is missing or wrong."""
    name = place[0]
    if name not in content:
        if needed:
            mistakes.append(Mistake(place, f"this table is needed, with {', '.join(_required(kind)) or 'a goal'}"))
            return None
        return kind() if not _required(kind) else None
    return _parsed(kind, place, content[str(name)], mistakes)


def _stages(given: Any, mistakes: list[Mistake]) -> list[StageTable | None]:
    if not isinstance(given, list):
        mistakes.append(Mistake(("stage",), "stages are a list: write [[stage]], with two brackets each"))
        return []
    return [_parsed(StageTable, ("stage", number), value, mistakes) for number, value in enumerate(given)]


def _parsed(kind: type[Table], place: Place, given: Any, mistakes: list[Mistake]) -> Any:
    if not isinstance(given, Mapping):
        hint = f"write [{place[0]}], with one bracket, once" if isinstance(given, list) else "this is a table of keys"
        mistakes.append(Mistake(place, hint, "" if isinstance(given, list) else shown(given)))
        return None
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        seen: set[str] = set()
        for detail in error.errors():
            key = str(detail["loc"][0])
            if key not in seen:  # of a list the first wrong item is enough
                seen.add(key)
                mistakes.append(_mistake(kind, place, key, given.get(key), detail))
        return None


def _mistake(kind: type[Table], place: Place, key: str, given: Any, detail: ErrorDetails) -> Mistake:
    known = list(kind.model_fields)
    if detail["type"] == "extra_forbidden":
        return Mistake((*place, key), f"there is no such key{nearest(key, known)} Keys: {', '.join(known)}")
    allowed = kind.model_fields[key].description
    if detail["type"] == "missing":
        return Mistake((*place, key), f"is missing; it is {allowed}")
    if detail["type"] == "value_error":
        return Mistake((*place, key), str(detail["ctx"]["error"]), shown(given))  # pyright: ignore[reportTypedDictNotRequiredAccess]
    near = nearest(str(given), _choices(allowed)) if isinstance(given, str) else "."
    return Mistake((*place, key), f"allowed: {allowed}{near.rstrip('.')}", shown(given))


def _choices(allowed: str | None) -> list[str]:
    """The quoted words of a description."""
    return (allowed or "").split('"')[1::2]


def _required(kind: type[Table]) -> list[str]:
    return [name for name, field in kind.model_fields.items() if field.is_required()]
