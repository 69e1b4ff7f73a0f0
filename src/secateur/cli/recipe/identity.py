"""What a run is: the plan in plain JSON, and the twelve digits that name its folder."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.cli.recipe.checks import Recipe

__all__ = ["digest", "identity", "user_files"]

_FORMAT = 1
"""Raised when the same recipe begins to mean something else."""


def identity(recipe: Recipe) -> dict[str, Any]:
    """Everything in which two runs must agree to share a folder.

    The tables with their defaults, the bytes of the checkpoint and of the user's code. Not: how the file is written,
    where it lies, the name of the checkpoint, ``[output]``, and versions, which are kept beside the results.

    Args:
        recipe: checked.

    Returns:
        Plain JSON.
    """
    model = {"factory": recipe.model.factory, "checkpoint": None}
    if recipe.checkpoint is not None:
        model["checkpoint"] = _sha256(recipe.checkpoint)
    specs = [function.__module__ for function in recipe.functions.values() if hasattr(function, "__module__")]
    named = [spec.partition(":")[0] for spec in _specs(recipe)]
    return {
        "format": _FORMAT,
        "model": model,
        "data": recipe.data.model_dump(),
        "stage": [stage.model_dump(exclude_none=True) for stage in recipe.stages],
        "recover": recipe.recover.model_dump(),
        "goal": recipe.goal.model_dump(exclude_none=True),
        "search": recipe.search.model_dump(),
        "code": {name: _sha256(path) for name, path in sorted(user_files([*named, *specs]).items())},
    }


def digest(plan: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of a plan.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def user_files(modules: Iterable[str]) -> dict[str, Path]:
    """The files of these modules, and of the modules beside them that they import.

    Installed packages do not count: they have versions.

    Args:
        modules: dotted names.

    Returns:
        Dotted name -> file.
    """
    found: dict[str, Path] = {}
    waiting = list(dict.fromkeys(modules))
    while waiting:
        name = waiting.pop()
        path = None if name in found else _source(name)
        if path is None:
            continue
        found[name] = path
        waiting += list(_imports(path, name))
    return found


def _specs(recipe: Recipe) -> Iterator[str]:
    for place in recipe.functions:
        table = getattr(recipe, str(place[0]), None) if place[0] != "stage" else recipe.stages[int(place[1])]
        value = getattr(table, str(place[-1]), None)
        if isinstance(value, str):
            yield value


def _source(module: str) -> Path | None:
    """The file of a module of the user's own; None for what is built in, installed, or not there."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):  # half of the names in `from package import name` are no modules
        return None
    if spec is None or not spec.has_location or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return (
        None
        if installed or path.is_relative_to(_standard_library()) or module.partition(".")[0] == "secateur"
        else path
    )


def _standard_library() -> Path:
    return Path(ast.__file__).parent


def _imports(path: Path, module: str) -> Iterator[str]:
    """Dotted names of the modules that a file may import."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # it is told when the file is imported
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()
