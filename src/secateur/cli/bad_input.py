"""The user's mistakes as one message without a traceback; everything else keeps its traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import typer

from secateur.cli.output import printable

__all__ = ["BAD_INPUT", "as_message", "is_ours"]

BAD_INPUT = 2
"""The exit code for bad input."""


def as_message(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, with the package's own refusals printed on standard error and exit code 2.

    Args:
        command: raises ``ValueError`` or ``OSError`` for what the user can put right.

    Returns:
        A function of the same signature.

    Raises:
        Exit: with code 2 after a message.

    Example:
        >>> def cut(sparsity: float) -> None:
        ...     raise KeyError(sparsity)
        >>> as_message(cut)(0.9)
        Traceback (most recent call last):
        KeyError: 0.9
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:
            raise  # `secateur methods | head` is no mistake
        except (ValueError, OSError) as error:
            if not is_ours(error):
                raise
            print(f"secateur {command.__name__}: {printable(str(error))}", file=sys.stderr)
            raise typer.Exit(BAD_INPUT) from error

    return run


def is_ours(error: BaseException) -> bool:
    """Whether an exception was raised by this package, rather than inside a model, a loss or a loader of the user's.

    Those may raise the same types, and only a traceback says where.

    Example:
        >>> import json
        >>> try:
        ...     json.loads("{")
        ... except ValueError as error:
        ...     is_ours(error)
        False
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return module.partition(".")[0] == "secateur"
