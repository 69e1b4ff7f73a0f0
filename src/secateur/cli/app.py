"""The program: its commands in one table. A command's file imports torch inside its function, not above it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Annotated, Any

import typer

from secateur.cli.bad_input import as_message
from secateur.cli.bench import bench
from secateur.cli.compress import compress
from secateur.cli.demo import demo
from secateur.cli.inspect import inspect
from secateur.cli.measure import measure
from secateur.cli.methods import methods
from secateur.cli.pack import pack
from secateur.cli.prune import prune
from secateur.cli.report import report
from secateur.cli.shrink import shrink

__all__ = ["COMMANDS", "app"]

COMMANDS: tuple[Callable[..., Any], ...] = (
    demo,
    methods,
    inspect,
    prune,
    shrink,
    compress,
    pack,
    measure,
    bench,
    report,
)
"""In the order of the help text. Each is named by its function and explained by its docstring."""

app = typer.Typer(
    name="secateur",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"secateur {importlib.metadata.version('secateur')}")
        raise typer.Exit


@app.callback()
def secateur(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make PyTorch networks sparse, and turn the zeros into measured outcomes.

    Models and data come from functions of yours, named as package.module:function; modules in the
    current directory can be named. Nothing in a data file is ever executed.

    Exit codes: 0 done, 2 bad input, 3 goal not met.
    """


for _command in COMMANDS:
    app.command(_command.__name__)(as_message(_command))
