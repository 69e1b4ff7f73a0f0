"""The tutorial and the recipe of the documentation, run in an empty folder as a user would; output as printed there."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

import secateur as sc
from secateur.cli.app import COMMANDS, app
from secateur.cli.recipe.schema import SINGLE, StageTable
from tests.cli.test_process import process
from tests.structure.tree import ROOT

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
FENCE = re.compile(r'^```(\w+)(?: title="([\w.]+)")?\n(.*?)^```$', re.M | re.S)
PAGE = {"goal", "your model", "chosen", "bfloat16", "narrower", "time", "files"}


def blocks(text: str) -> list[tuple[str, str, str]]:
    """(language, file name, content) of every fenced block."""
    return [(match[1], match[2] or "", match[3]) for match in FENCE.finditer(text)]


def files_of(text: str) -> dict[str, str]:
    return {name: content for _, name, content in blocks(text) if name}


def steps(text: str) -> Iterator[tuple[str, str]]:
    """(command, what the page says it prints)."""
    found = blocks(text)
    for (language, _, command), (following, _, printed) in pairwise(found):
        if language == "sh":
            assert following == "text", f"{command} shows no output"
            yield command.strip(), printed


def skeleton(text: str) -> list[str]:
    """Lines without what differs from machine to machine: figures, digests, widths of columns."""
    text = re.sub(r"\b[0-9a-f]{12}\b", "<digits>", text)
    text = re.sub(r"[-+]?\d[\d.,]*", "#", text)
    return [" ".join(re.sub("─+", "─", line).split()) for line in text.splitlines() if line.strip()]


def heads(text: str) -> set[str]:
    return {re.split(r":|  ", line)[0].strip() for line in text.splitlines()}


def run(command: str, folder: Path) -> str:
    program, *arguments = shlex.split(command)
    module = ("-m", "secateur.cli") if program == "secateur" else ()
    done = process(*arguments, folder=folder, module=module)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """An empty folder in which the tutorial was followed, and what each command printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name, content in files_of(TUTORIAL).items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder, {command: run(command, folder) for command, _ in steps(TUTORIAL)}


@pytest.mark.slow
def test_the_tutorial_prints_what_it_says(followed: tuple[Path, dict[str, str]]) -> None:
    for command, shown in steps(TUTORIAL):
        printed = followed[1][command]
        if command == "secateur compress recipe.toml":  # which points are tried depends on the machine's arithmetic
            assert heads(shown) >= PAGE
            assert heads(printed) >= PAGE
            continue
        left = iter(skeleton(printed))
        for line in skeleton(shown):
            assert line == "..." or line in left, f"{command} does not print: {line}\n{printed}"


@pytest.mark.slow
def test_the_tutorial_keeps_its_promises(followed: tuple[Path, dict[str, str]]) -> None:
    folder, printed = followed
    bytes_left, accuracy = re.findall(r"\d[\d.,]*", printed["python use.py"])
    dense = (folder / "dense.safetensors").stat().st_size
    assert int(bytes_left.replace(",", "")) <= dense / 8 * 1.01  # the goal counts the file of sc.save, some bytes more
    assert float(accuracy) >= float(re.findall(r"[\d.]+", printed["python train.py"])[0]) - 5
    assert "the chosen model" in printed["secateur compress recipe.toml"]


@pytest.mark.slow
def test_the_complete_recipe_runs(followed: tuple[Path, dict[str, str]]) -> None:
    folder = followed[0]
    (folder / "complete.toml").write_text(next(content for kind, _, content in blocks(RECIPES) if kind == "toml"))
    printed = run("secateur compress complete.toml", folder)
    assert ": met" in printed.splitlines()[0]
    chosen = next(line.split()[1] for line in printed.splitlines() if line.startswith("files: "))
    assert (folder / chosen).is_file()
    model = next(line.split(": ")[0].strip() for line in printed.splitlines() if line.endswith("the chosen model"))
    widths = [tensor.shape[0] for name, tensor in sc.load(folder / model).tensors.items() if name == "0.weight"]
    assert widths[0] % 4 == 0
    assert widths[0] < 16


def test_the_mistakes_shown_are_those_that_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = next(content for kind, _, content in blocks(RECIPES) if kind == "toml")
    for old, new in (("checkpoint =", "chekpoint ="), ('"l2"', '"magnitud"'), ("max_drop = 2.0", "max_drop = -2.0")):
        assert old in text
        text = text.replace(old, new, 1)
    Path("recipe.toml").write_text(text)
    for name in ("mymodel.py", "mydata.py"):
        Path(name).write_text(files_of(TUTORIAL)[name])
    result = CliRunner().invoke(app, ["compress", "recipe.toml"])
    assert result.exit_code == 2
    told = next(content for _, _, content in blocks(RECIPES) if content.startswith("secateur compress: "))
    for shown, real in zip(told.splitlines(), result.stderr.splitlines(), strict=True):
        assert real.startswith(shown.removesuffix("...").rstrip())
    for name in ("mymodel", "mydata"):
        sys.modules.pop(name, None)


def test_every_key_and_command_is_documented() -> None:
    for kind in [kind for kind, _ in SINGLE.values()] + [StageTable]:
        for name in kind.model_fields:
            assert f"`{name}`" in RECIPES, f"{kind.__name__}.{name}"
    assert "compress" in [command.__name__ for command in COMMANDS]
