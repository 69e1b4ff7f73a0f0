"""``secateur compress RECIPE.toml``: one file from a dense model to the smallest one that meets a goal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.output import print_json, print_line, print_table
from secateur.cli.shrink import GOAL_NOT_MET

if TYPE_CHECKING:
    from secateur.cli.recipe.checks import Recipe
    from secateur.cli.recipe.folder import RunFolder
    from secateur.records import Trials

__all__ = ["INTERRUPTED", "compress"]

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and the number of the signal."""


def compress(
    recipe: Annotated[Path, typer.Argument(help="TOML: model, data, stages, recover, goal, search, output.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan, cost, layers and folder; train and write nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search for the smallest or fastest model that meets a goal.

    The recipe names functions of yours, as package.module:function; modules beside the recipe can be
    named, and its paths are relative to it. It is checked as a whole before any work. The run folder is
    named by the plan: running again continues, and prints the result where it is finished.

    Exit codes: 0 goal met, 2 bad recipe, 3 goal not met (the frontier is printed), 130 interrupted.

    Example: secateur compress recipe.toml --dry-run
    """
    from secateur.cli.recipe.checks import read_recipe
    from secateur.cli.recipe.folder import RunFolder
    from secateur.cli.recipe.identity import digest, identity
    from secateur.cli.recipe.running import run

    read = read_recipe(recipe)
    plan = identity(read)
    folder = RunFolder(read.path.parent / read.output.folder / digest(plan))
    if dry_run:
        _show_plan(read, plan, folder, json)
        return
    try:
        record = run(read, plan, folder)
    except KeyboardInterrupt:
        print(_how_to_continue(recipe, folder), file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    _show_result(record, folder, json)
    if not record.met:
        raise typer.Exit(GOAL_NOT_MET)


def _show_plan(recipe: Recipe, plan: dict[str, Any], folder: RunFolder, json: bool) -> None:
    from secateur.cli.recipe.estimate import estimate
    from secateur.cli.recipe.overview import as_json, layers, lines
    from secateur.cli.recipe.resolve import prepare
    from secateur.cli.recipe.running import settings
    from secateur.train.compress.candidates import families_for

    prepared, chosen = prepare(recipe), settings(recipe)
    searched = families_for(chosen["goal"], chosen["stages"])
    cost = estimate(prepared, chosen, searched)
    rows, untraced = layers(prepared)
    if json:
        print_json(as_json(recipe, plan, searched, cost, folder) | {"layers": rows})
        return
    print_line(f"{recipe.path} is right. Nothing was trained or written.")
    print_line("")
    width = max(len(word) for word, _ in lines(recipe, searched, cost, folder))
    last = ""
    for word, text in lines(recipe, searched, cost, folder):
        print_line(f"{'' if word == last else word:{width}}  {text}")
        last = word
    print_line("")
    heading = ("layer", "kind", "shape", "parameters", "multiply-adds", "channels that may go")
    cells = [
        [
            *(row["layer"], row["kind"], " x ".join(map(str, row["shape"]))),
            *(f"{row['parameters']:,}", f"{row['macs']:,}", row["channels"]),
        ]
        for row in rows
    ]
    print_table("layers", heading, cells, right=("parameters", "multiply-adds"))
    if untraced:
        print_line(f"which channels may go is not known: {untraced}")


def _show_result(record: Trials, folder: RunFolder, json: bool) -> None:
    from secateur.cli.recipe.running import MODEL, RECORD, REPORT
    from secateur.train.compress.page import page

    if json:
        print_json(record.to_record())
        return
    print_line(page(record))
    for name, what in ((MODEL, "the chosen model"), (REPORT, "the page"), (RECORD, "every figure")):
        if (folder.path / name).is_file():
            print_line(f"       {folder.path / name}: {what}")


def _how_to_continue(recipe: Path, folder: RunFolder) -> str:
    if folder.state() == "new":
        return "secateur compress: interrupted; nothing was written"
    points = folder.points()
    kept = f"{points} point{' is' if points == 1 else 's are'} kept in {folder.path}"
    return f"secateur compress: interrupted; {kept}. To continue: secateur compress {recipe}"
