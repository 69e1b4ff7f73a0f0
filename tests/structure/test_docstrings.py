"""What the package offers explains itself: a line, what comes back, what is refused, an example."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import secateur as sc
from tests.structure.tree import PACKAGE, Function, definition, files, listed_names, parse, relative


def missing_sections(node: Function, docstring: str) -> list[str]:
    """Sections of a Google docstring that this function calls for and does not have."""
    returns = node.returns is not None and ast.unparse(node.returns) not in ("None", "NoReturn")
    body = list(ast.walk(node))
    given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    wanted = {
        "Args:": bool(given),
        "Returns:": returns,
        "Raises:": any(isinstance(inner, ast.Raise) for inner in body),
        "Example:": True,
    }
    # An iterator yields; a context manager is used, and says so in its example.
    has = {name: re.search(rf"^\s*{name}", docstring, re.M) is not None for name in wanted}
    has["Returns:"] = has["Returns:"] or "Yields:" in docstring or any(isinstance(n, ast.Yield) for n in body)
    return [name for name, needed in wanted.items() if needed and not has[name]]


def face() -> list[str]:
    return [name for name in sc.__all__ if inspect.isfunction(getattr(sc, name))]


@pytest.mark.parametrize("path", files("src"), ids=relative)
def test_public_names_exist_and_are_documented(path: Path) -> None:
    tree = parse(path)
    defined = {name: definition(tree, name) for name in listed_names(tree) or []}
    assert [name for name, node in defined.items() if node is not None and not ast.get_docstring(node)] == []
    # A constant, a table, an alias or a name passed on.
    others = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    others |= {a.asname or a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    assert [name for name, node in defined.items() if node is None and name not in others] == []


@pytest.mark.parametrize("name", face())
def test_the_public_face_has_every_section(name: str) -> None:
    function = inspect.unwrap(getattr(sc, name))
    node = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function))).body[0]
    assert missing_sections(node, inspect.getdoc(function) or "") == []


def test_every_name_of_the_public_face_is_there() -> None:
    assert sc.__all__
    assert [name for name in sc.__all__ if not hasattr(sc, name)] == []
    assert [n for n in sc.__all__ if callable(getattr(sc, n)) and not inspect.getdoc(getattr(sc, n))] == []


def test_the_package_tested_is_the_one_of_this_checkout() -> None:
    assert PACKAGE.samefile(inspect.getfile(sc).rsplit("__init__", 1)[0])


def test_a_missing_section_is_seen() -> None:
    node = ast.parse("def f(a: int) -> int:\n    if a: raise ValueError\n    return a").body[0]
    assert missing_sections(node, "Does.") == ["Args:", "Returns:", "Raises:", "Example:"]
    assert missing_sections(node, "Does.\n\nArgs:\nReturns:\nRaises:\nExample:\n") == []
