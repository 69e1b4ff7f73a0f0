"""TOML in: the tables as they stand, and the line of every key."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from secateur.cli.recipe.mistakes import Lines, Place

__all__ = ["line_numbers", "read_toml"]

_HEADER = re.compile(r"^\s*(\[\[?)([^\[\]]+)\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""^\s*([\w-]+|"[^"]*"|'[^']*')\s*[.=]""")
_LARGEST = 1 << 20


def read_toml(path: Path) -> tuple[str, dict[str, Any], Lines]:
    """A TOML file.

    Args:
        path: of at most one MiB.

    Returns:
        Its text, its content, and the line of each table and key.

    Raises:
        ValueError: if there is no such file, or it is not TOML: with the line and column.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # the same parser, as a package
        import tomli as tomllib  # pyright: ignore[reportMissingImports]

    if not path.is_file():
        raise ValueError(f"{path}: there is no such file{' (it is a folder)' if path.is_dir() else ''}")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path}: a recipe has some lines of text, but this file has {path.stat().st_size:,} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text), line_numbers(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f'{path}: not TOML: {error}; text is written in quotes, as in unit = "weight"') from error


def line_numbers(text: str) -> Lines:
    r"""Lines of tables and keys, found by their first characters: good enough to point at.

    Args:
        text: valid TOML.

    Returns:
        Place -> line, counted from 1.

    Example:
        >>> line_numbers('[goal]\nbytes = 0.5\n[[stage]]\nunit = "row"')
        {('goal',): 1, ('goal', 'bytes'): 2, ('stage', 0): 3, ('stage', 0, 'unit'): 4}
    """
    found: Lines = {}
    counted: dict[str, int] = {}
    table: Place = ()
    quoted = False
    for number, line in enumerate(text.split("\n"), 1):
        inside = quoted
        quoted ^= (line.count('"""') + line.count("'''")) % 2 == 1
        if inside:
            continue
        header, key = _HEADER.match(line), _KEY.match(line)
        if header is not None:
            first, *rest = (part.strip().strip("\"'") for part in header[2].split("."))
            if header[1] == "[[":
                counted[first] = counted.get(first, -1) + 1
            table = (first, counted[first], *rest) if first in counted else (first, *rest)
            found.setdefault(table, number)
        elif key is not None:
            found.setdefault((*table, key[1].strip("\"'")), number)
    return found
