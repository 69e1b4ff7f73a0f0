"""The files of the project, for the tests that look at its shape."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "secateur"
NOT_OURS = {".git", ".venv", "build", "dist", "site", "runs", "__pycache__", ".ruff_cache", ".pytest_cache"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def project_files() -> tuple[Path, ...]:
    """Every file that is in git or could be: what git ignores is not ours."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # an unpacked source archive has no git
        found = [path for path in ROOT.rglob("*") if not NOT_OURS & set(path.relative_to(ROOT).parts)]
    return tuple(sorted(path for path in found if path.is_file()))


def files(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    """The project's files under these folders with one of these endings."""
    inside = [path for path in project_files() if path.relative_to(ROOT).parts[0] in folders]
    return [path for path in inside if path.suffix in suffixes]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return body[1:] if documented and isinstance(first.value.value, str) else body


def listed_names(tree: ast.Module) -> list[str] | None:
    """The names in ``__all__``, None where the module has none."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return list(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    return None


def definition(tree: ast.Module, name: str) -> Function | ast.ClassDef | None:
    """The class or function of that name; of overloads the last, which is the function itself."""
    for node in reversed(tree.body):
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return node
    return None
