"""Sizes and habits: short files, short functions, nothing swallowed, nothing pretended."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.structure.tree import (
    ROOT,
    Function,
    files,
    functions,
    listed_names,
    parse,
    project_files,
    relative,
    without_docstring,
)

LONGEST_FILE = 300
LONGEST_EXAMPLE = 150
LONGEST_FUNCTION = 50
PYTHON = files("src", "tests", "benchmarks", "examples", "tools", "docs")
NATIVE = files("csrc", "tests", suffixes=(".cpp", ".cc", ".h", ".hpp"))
TEXT = (".py", ".toml", ".txt", ".md", ".yml", ".yaml", ".json", ".sh", ".cpp", ".h", ".hpp", ".def", ".html", ".j2")


def code_lines(node: Function) -> int:
    """Lines of the signature and the body; a docstring is documentation, not length."""
    body = without_docstring(node.body)
    docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if body is not node.body else 0
    return node.end_lineno - node.lineno + 1 - docstring


def long_functions(tree: ast.Module) -> list[str]:
    counted = [(node.name, code_lines(node)) for node in functions(tree)]
    return [f"{name}: {lines} lines" for name, lines in counted if lines > LONGEST_FUNCTION]


def long_native_functions(text: str) -> list[str]:
    """Functions that open at the left margin and close there, as clang-format lays them out."""
    found, opened, name = [], None, ""
    for number, line in enumerate(text.splitlines(), start=1):
        starts = re.match(r"(?!namespace|extern|struct|class|enum|union)[A-Za-z_].*\(.*\{\s*$", line)
        if opened is None and starts:
            opened, name = number, line.strip()
        elif opened is not None and line.startswith("}"):
            if number - opened + 1 > LONGEST_FUNCTION:
                found.append(f"{name}: {number - opened + 1} lines")
            opened = None
    return found


def swallowed(tree: ast.Module) -> list[int]:
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    return [node.lineno for node in handlers if node.type is None or all(isinstance(s, ast.Pass) for s in node.body)]


def stubs(tree: ast.Module) -> list[str]:
    """Functions that only raise NotImplementedError, or have no body at all, and are not abstract."""
    found = []
    for node in functions(tree):
        abstract = any("abstract" in ast.unparse(d) or "overload" in ast.unparse(d) for d in node.decorator_list)
        body = without_docstring(node.body) if node.body else []
        only_raises = (
            len(body) == 1 and isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.unparse(body[0])
        )
        if only_raises and not abstract:
            found.append(f"line {node.lineno}: {node.name}")
    return found


def speakers(*trees: ast.Module) -> set[str]:
    """Functions that can fail on purpose by themselves."""
    says = re.compile(r"\bassert|\.raises\(|\.warns\(|\bcheck\w*\(")
    return {node.name for tree in trees for node in functions(tree) if says.search(ast.unparse(node))}


def silent_tests(tree: ast.Module, helpers: frozenset[str] = frozenset()) -> list[str]:
    """Tests in which nothing can fail on purpose: not they, nor a helper that they call."""
    speaks = speakers(tree) | helpers
    found = []
    for node in functions(tree):
        calls = [inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)]
        called = {function.id for function in calls if isinstance(function, ast.Name)}
        if node.name.startswith("test_") and not ({node.name} | called) & speaks:
            found.append(f"line {node.lineno}: {node.name}")
    return found


HELPERS = frozenset(speakers(*map(parse, (p for p in files("tests") if not p.name.startswith("test_")))))


@pytest.mark.parametrize("path", PYTHON + NATIVE, ids=relative)
def test_files_are_short(path: Path) -> None:
    limit = LONGEST_EXAMPLE if path.relative_to(ROOT).parts[0] == "examples" else LONGEST_FILE
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= limit


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_functions_are_short(path: Path) -> None:
    assert long_functions(parse(path)) == []


@pytest.mark.parametrize("path", NATIVE, ids=relative)
def test_native_functions_are_short(path: Path) -> None:
    assert long_native_functions(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_nothing_is_swallowed_or_pretended(path: Path) -> None:
    assert (swallowed(parse(path)), stubs(parse(path))) == ([], [])


@pytest.mark.parametrize("path", files("tests"), ids=relative)
def test_every_test_can_fail(path: Path) -> None:
    assert silent_tests(parse(path), HELPERS) == []


@pytest.mark.parametrize("path", files("src"), ids=relative)
def test_every_module_says_what_it_is_and_what_it_offers(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree), "no module docstring"
    assert listed_names(tree) is not None, "no __all__"
    assert len(listed_names(tree)) == len(set(listed_names(tree))), "__all__ repeats a name"


def test_there_is_no_drawer_for_everything() -> None:
    assert [relative(p) for p in PYTHON if p.stem in ("utils", "util", "helpers", "misc", "common")] == []


def test_no_file_names_a_machine() -> None:
    """The project runs anywhere: no path of the machine it was written on."""
    home = re.compile("(?<![\\w.])/(?:" + "work|root|home/\\w+|Users/\\w+" + ")/")
    texts = [p for p in project_files() if p.suffix in TEXT or p.name in ("Makefile", "run")]
    found = {relative(p): home.findall(p.read_text(encoding="utf-8")) for p in texts}
    assert {path: hits for path, hits in found.items() if hits} == {}


def test_these_checks_see_what_they_are_for() -> None:
    long_body = "def f():\n" + "    x = 1\n" * 50
    assert long_functions(ast.parse(long_body)) == ["f: 51 lines"]
    assert long_functions(ast.parse("def f():\n    '''" + "doc\n" * 60 + "'''\n    return 1\n")) == []
    assert long_native_functions("void f(int a) {\n" + "  a++;\n" * 60 + "}\n") == ["void f(int a) {: 62 lines"]
    assert long_native_functions("namespace a {\n" + "int x;\n" * 60 + "}\n") == []
    assert swallowed(ast.parse("try:\n    f()\nexcept OSError:\n    pass\n")) == [3]
    assert swallowed(ast.parse("try:\n    f()\nexcept OSError:\n    g()\n")) == []
    assert stubs(ast.parse("def f():\n    '''Doc.'''\n    raise NotImplementedError\n")) == ["line 1: f"]
    assert stubs(ast.parse("@abstractmethod\ndef f():\n    raise NotImplementedError\n")) == []
    helped = "def refuse():\n    assert x\ndef test_a():\n    refuse()\n"
    assert silent_tests(ast.parse(helped)) == []
    assert silent_tests(ast.parse("def test_a():\n    f()\ndef test_b():\n    assert f()\n")) == ["line 1: test_a"]
