"""A recipe carried out in its folder: begun, continued, finished once."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from secateur.cli.recipe.resolve import goal_of, prepare, stages_of, training_of

if TYPE_CHECKING:
    from secateur.cli.recipe.checks import Recipe
    from secateur.cli.recipe.folder import RunFolder
    from secateur.records import Trials

__all__ = ["ENVIRONMENT", "MODEL", "RECORD", "REPORT", "run", "settings"]

ENVIRONMENT, MODEL, RECORD, REPORT = "environment.json", "model.safetensors", "record.json", "report.html"
_PACKAGES = ("torch", "numpy", "safetensors", "secateur", "optuna")


def settings(recipe: Recipe) -> dict[str, Any]:
    """The keyword arguments of ``sc.compress`` that a recipe settles without model and data.

    Args:
        recipe: checked.

    Returns:
        Name -> value; what was left out is not in it.
    """
    found: dict[str, Any] = {
        "goal": goal_of(recipe),
        "stages": stages_of(recipe),
        "recovery": training_of(recipe.recover, recipe.functions),
        "metric": recipe.functions.get(("goal", "metric")),
        "batch": recipe.search.batch,
        "search": recipe.search.method,
        "rivals": recipe.search.rivals,
        "rival_epochs": recipe.search.rival_epochs,
        "seed": recipe.search.seed,
    }
    return found if recipe.search.trials is None else found | {"trials": recipe.search.trials}


def run(recipe: Recipe, plan: dict[str, Any], folder: RunFolder) -> Trials:
    """Search, or continue a search, and leave its results in the folder; ``record.json`` comes last.

    Args:
        recipe: checked.
        plan: of it.
        folder: of the run.

    Returns:
        What was found.

    Raises:
        BadRecipe: for what shows only when the functions are called; nothing is written then.
        ValueError: if another process runs the same recipe.
    """
    from secateur.deploy import save
    from secateur.report.html import to_html
    from secateur.train.compress import compress

    if folder.state() == "finished":
        return _finished(folder)
    prepared = prepare(recipe)
    with folder.locked():
        if folder.state() == "finished":  # by the run that had the lock until now
            return _finished(folder)
        _begin(recipe, plan, folder)
        result = compress(
            prepared.model,
            prepared.data["train"],
            prepared.data["valid"],
            prepared.data.get("test"),
            example_inputs=prepared.inputs,
            folder=folder.path,
            **settings(recipe),
        )
        save(result.model, folder.path / MODEL)  # nothing else in it: these are the bytes that were asked for
        try:
            to_html(result.report, folder.path / REPORT)
        except ImportError as error:  # an extra; the search was not for a page
            print(f"{folder.path}: there is no {REPORT}: {error}", file=sys.stderr)
        folder.write(RECORD, result.record.to_record())
    return result.record


def _finished(folder: RunFolder) -> Trials:
    from secateur.records import Trials

    try:
        return replace(Trials.from_record(folder.record()), folder=str(folder.path))
    except ValueError as error:
        path = folder.path / RECORD
        raise ValueError(f"{path}: {error}. Delete this file and run again: the points stay") from error


def _begin(recipe: Recipe, plan: dict[str, Any], folder: RunFolder) -> None:
    """What says what this folder is; where it is continued under other versions, that is said."""
    from secateur.measure.environment import environment

    now = {"machine": environment().to_record(), "packages": _versions()}
    if folder.state() == "new":
        folder.write("recipe.toml", recipe.text)
        folder.write(ENVIRONMENT, now)
        folder.write("plan.json", plan)  # last: from here on the run has begun
        return
    before = folder.read(ENVIRONMENT)
    if before == now:
        return
    changed = [
        f"{name} {before['packages'].get(name)} -> {version}"
        for name, version in now["packages"].items()
        if before["packages"].get(name) != version
    ]
    if changed:
        told = f"{folder.path}: continued under other versions ({', '.join(changed)}); points may differ for that alone"
        print(told, file=sys.stderr)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed
    return found
