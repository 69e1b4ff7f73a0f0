"""Who may import whom. The rooms and their order are those of docs/design.md, section 4."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure.tree import PACKAGE, files, parse, relative

WORDS = {"types", "records", "text"}
# Room -> the rooms that it may import beside itself. A room that is not here does not exist yet.
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "records": set(),
    "text": set(),
    "native": WORDS,
    "core": WORDS | {"native"},
    "runtime": WORDS | {"native"},
    "io": WORDS | {"native"},
    "report": WORDS,
    "model": WORDS | {"native", "core"},
}
ALLOWED["deploy"] = ALLOWED["model"] | {"model", "io", "runtime"}
ALLOWED["measure"] = ALLOWED["deploy"] | {"deploy"}
ALLOWED["train"] = ALLOWED["measure"] | {"measure"}
ALLOWED["benchmark"] = ALLOWED["train"] | {"train", "report"}
ALLOWED["integrations"] = ALLOWED["train"] | {"train"}
ALLOWED["cli"] = ALLOWED["benchmark"] | {"benchmark", "integrations", "__init__"}
ALLOWED["__main__"] = {"cli"}
ALLOWED["__init__"] = ALLOWED["benchmark"] | {"benchmark", "integrations"}

# Modules outside the package that a room must not see, at any depth.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "core": ("torch.nn", "torch.distributed", "torch.optim"),
    "runtime": ("torch.nn", "torch.distributed", "torch.optim"),
    "types": ("torch.nn", "torch.distributed"),
    "records": ("torch",),
    "report": ("torch",),
}
# The only imports upwards: (file, module), each with its reason.
EXCEPTIONS = {
    # record.to_html(path), print(record): a record can show itself; the room is loaded when it does, never before.
    ("records/measured.py", "secateur.report.headline.text_summary"),
    ("records/measured.py", "secateur.report.html.to_html"),
}
FUNCTIONS = "torch.nn.functional"  # functions of tensors, wherever torch keeps them


def room_of(path: Path, package: Path = PACKAGE) -> str:
    first = path.relative_to(package).parts[0]
    return first.removesuffix(".py")


def imported_modules(tree: ast.Module, path: Path, package: Path = PACKAGE) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, also inside functions and TYPE_CHECKING; relative ones resolved."""
    here = ("secateur", *path.relative_to(package).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def violations(tree: ast.Module, path: Path, package: Path = PACKAGE) -> list[str]:
    room = room_of(path, package)
    if room not in ALLOWED:
        return [f"room {room!r} is not in the table of this test; add it here and to docs/design.md"]
    found: list[str] = []
    for line, module in imported_modules(tree, path, package):
        parts = module.split(".")
        if not module.startswith(FUNCTIONS) and any(
            module == bad or module.startswith(bad + ".") for bad in FORBIDDEN.get(room, ())
        ):
            found.append(f"line {line}: {room} must not see {module}")
        if parts[0] != "secateur" or (path.relative_to(package).as_posix(), module) in EXCEPTIONS:
            continue
        other = parts[1] if len(parts) > 1 and parts[1] in ALLOWED else "__init__"
        if other not in ALLOWED[room] | {room}:
            found.append(f"line {line}: {room} must not import {other} ({module})")
    return found


@pytest.mark.parametrize("path", files("src"), ids=relative)
def test_imports_point_one_way(path: Path) -> None:
    assert violations(parse(path), path) == []


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("core/units.py", "from secateur.model import masks"),
        ("core/units.py", "def f():\n    from ..model.masks import Masks"),
        ("core/units.py", "import torch.nn as nn"),
        ("core/units.py", "from torch import nn"),
        ("io/files.py", "from secateur.core import units"),
        ("report/html.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import secateur.measure"),
        ("model/masks.py", "import secateur as sc"),
        ("model/masks.py", "from secateur import save"),
        ("native.py", "from .core import units"),
        ("attic/old.py", "import math"),
    ],
)
def test_a_wrong_import_is_seen(where: str, code: str) -> None:
    assert len(violations(ast.parse(code), PACKAGE / where)) == 1


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("core/units.py", "from secateur import native, types"),
        ("core/criteria/weight.py", "from ...types import Tensors\nfrom ..units import Weight"),
        ("cli/prune.py", "import secateur as sc\nfrom secateur.report import html"),
        ("core/units.py", "import torch.nn.functional as F"),
        ("model/masks.py", "import torch.nn as nn"),
    ],
)
def test_a_right_import_passes(where: str, code: str) -> None:
    assert violations(ast.parse(code), PACKAGE / where) == []


def test_the_native_core_never_sees_torch() -> None:
    sources = files("csrc", suffixes=(".cpp", ".cc", ".h", ".hpp", ".def"))
    guilty = [relative(p) for p in sources if any(w in p.read_text() for w in ("<torch/", "<ATen/", "<c10/"))]
    assert guilty == []
