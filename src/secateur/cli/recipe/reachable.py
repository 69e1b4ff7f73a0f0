"""The functions that a recipe names: found, or listed with what is wrong; an import error is shown as the user's."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from secateur.cli.functions import find_function
from secateur.cli.recipe.mistakes import Mistake, Place, shown
from secateur.cli.recipe.schema import is_function

__all__ = ["find_functions", "make_importable"]

_ALWAYS = (("model", "factory"), ("data", "train"), ("data", "valid"), ("data", "test"), ("goal", "metric"))
_ALSO = (("recover", "step"), ("recover", "loss"), ("recover", "optimizer"), ("recover", "lr_schedule"))
_METHODS = ("criterion", "allocation", "schedule")


def make_importable(folder: Path) -> None:
    """Put the current directory and the recipe's own in front of the path, the recipe's first."""
    for place in (str(Path.cwd()), str(folder)):
        if place in sys.path:
            sys.path.remove(place)
        sys.path.insert(0, place)


def find_functions(content: Mapping[str, Any]) -> tuple[dict[Place, Callable[..., Any]], list[Mistake]]:
    """Import every function that is named.

    Args:
        content: the file's tables, right or wrong.

    Returns:
        Place -> function, and the mistakes.
    """
    found: dict[Place, Callable[..., Any]] = {}
    mistakes: list[Mistake] = []
    for place, spec in _named(content):
        try:
            found[place] = find_function("", spec)
        except ValueError as error:
            if not _is_refusal(error):
                mistakes.append(Mistake(place, _as_the_users(spec, error), shown(spec)))
                continue
            text = str(error).strip().removeprefix(repr(spec)).removeprefix(spec).removeprefix(":").strip()
            mistakes.append(Mistake(place, text, shown(spec)))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything; it is shown
            mistakes.append(Mistake(place, _as_the_users(spec, error), shown(spec)))
    return found, mistakes


def _named(content: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
    for table, key in (*_ALWAYS, *_ALSO):
        value = content[table].get(key) if isinstance(content.get(table), Mapping) else None
        if isinstance(value, str) and ((table, key) in _ALWAYS or key == "step" or is_function(value)):
            yield (table, key), value
    stages = content.get("stage")
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        for key in _METHODS:
            value = stage.get(key) if isinstance(stage, Mapping) else None
            if isinstance(value, str) and is_function(value):
                yield ("stage", number, key), value


def _is_refusal(error: ValueError) -> bool:
    """Whether ``find_function`` itself refused, not a module of the user's while it was imported."""
    from secateur.cli.bad_input import is_ours

    return is_ours(error)


def _as_the_users(spec: str, error: BaseException) -> str:
    """One line: what the import raised, and where in the user's files."""
    module = spec.partition(":")[0]
    what = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1]
    where = ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({error.filename}, line {error.lineno})"
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _of_a_user(frame.filename)]
        if frames:
            where = f" ({frames[-1].filename}, line {frames[-1].lineno})"
    return f"importing {module!r} raised {what}{where}"


def _of_a_user(file: str) -> bool:
    package = str(Path(__file__).resolve().parents[2])
    return not file.startswith("<") and not file.startswith(package) and not file.endswith("importlib/__init__.py")
