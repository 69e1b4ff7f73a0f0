"""A run is named by what changes its results, and one process at a time writes in its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from secateur.cli.recipe.checks import read_recipe
from secateur.cli.recipe.folder import RunFolder
from secateur.cli.recipe.identity import digest, identity, user_files
from tests.cli.conftest import dense_state
from tests.cli.recipe_files import RECIPE, written
from tests.cli.test_process import SOURCE


def name_of(path: Path) -> str:
    return digest(identity(read_recipe(path)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[model]", "# a comment\n\n[model]"),
        ('when = "after"\n', "# the default\n"),
        ("epochs = 2\n", "batch_size = 64\nepochs = 2\n"),
        ("max_drop = 50.0", "max_drop = 50"),
        ('folder = "runs"', 'folder = "elsewhere"'),
        ('"dense.safetensors"', '"copy.safetensors"'),
    ],
)
def test_what_changes_no_result_changes_no_name(nets: Path, old: str, new: str) -> None:
    (nets / "copy.safetensors").write_bytes((nets / "dense.safetensors").read_bytes())
    assert name_of(written(nets, (old, new), name="other.toml")) == name_of(written(nets))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epochs = 2", "epochs = 3"),
        ("max_drop = 50.0", "max_drop = 49.0"),
        ("trials = 2", "trials = 3"),
        ('criterion = "l2"', 'criterion = "l1"'),
        ('test = "held:out"\n', ""),
        ('"nets:make"', '"nets:tied"'),
        ("rivals = false", "seed = 1\nrivals = false"),
    ],
)
def test_what_changes_results_changes_the_name(nets: Path, old: str, new: str) -> None:
    assert name_of(written(nets, (old, new), name="other.toml")) != name_of(written(nets))


def test_weights_and_code_are_in_the_name(nets: Path) -> None:
    path = written(nets)
    before = name_of(path)
    assert len(before) == 12
    save_file({**dense_state(), "2.bias": torch.ones(4)}, nets / "dense.safetensors")
    heavier = name_of(path)
    with (nets / "nets.py").open("a") as file:
        file.write("\n# changed\n")
    assert len({before, heavier, name_of(path)}) == 3


def test_code_that_the_users_code_imports_counts(nets: Path) -> None:
    (nets / "layers").mkdir()
    (nets / "layers" / "__init__.py").write_text("from .deep import width\n")
    (nets / "layers" / "deep.py").write_text("import os, numpy\nwidth = 4\n")
    (nets / "user_net.py").write_text("import torch\nfrom layers import width\nfrom layers.deep import missing_name\n")
    sys.path.insert(0, str(nets))
    found = user_files(["user_net"])
    assert {name: path.name for name, path in found.items()} == {
        "user_net": "user_net.py",
        "layers": "__init__.py",
        "layers.deep": "deep.py",
    }
    assert user_files(["json", "torch", "secateur.cli"]) == {}
    sys.modules.pop("layers", None)


def test_states_of_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "abc")
    assert (folder.state(), folder.points()) == ("new", 0)
    with folder.locked():
        folder.write("plan.json", {"a": 1})
        (folder.path / "trials.jsonl").write_text('{"kind":"point","key":"a"}\n{"kind":"cheap"}\n{"kind":"point"')
        assert (folder.state(), folder.points()) == ("begun", 2)
        folder.write("record.json", {"met": True})
    assert folder.state() == "finished"
    assert folder.record() == {"met": True}
    (folder.path / "record.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        folder.record()


HOLDER = """
import sys, time
from pathlib import Path
from secateur.cli.recipe.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.raises(ValueError, match=rf"another run writes in this folder \(process {other.pid} on "):
                RunFolder(tmp_path / "run").locked().__enter__()
        finally:
            other.kill()
            other.wait()
    with RunFolder(tmp_path / "run").locked():  # a killed process holds nothing
        assert f"process {os.getpid()}" in (tmp_path / "run" / ".lock").read_text()


def test_the_base_recipe_is_as_the_lines_say() -> None:
    assert RECIPE.split("\n")[21] == "max_drop = 50.0"
