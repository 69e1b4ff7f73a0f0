"""The command line: one command per file. ``secateur --help`` loads neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and end the process: 0 done, 2 bad input, 3 goal not met.

    Args:
        arguments: without the program's name; None: those of the process.

    Raises:
        SystemExit: always, with the exit code.

    Example:
        >>> main(["--version"])
        Traceback (most recent call last):
        SystemExit: 0
    """
    from secateur.cli.app import app

    app(args=None if arguments is None else list(arguments), prog_name="secateur")
