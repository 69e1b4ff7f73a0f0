"""``secateur compress``: the files, the exit codes, the streams, going on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import secateur as sc
from secateur.cli.compress import INTERRUPTED
from secateur.cli.recipe import running
from secateur.cli.recipe.checks import read_recipe
from secateur.cli.recipe.folder import RunFolder
from secateur.cli.recipe.identity import digest, identity
from secateur.model.graph import groups
from tests.cli.conftest import NETS, Run, dense_state
from tests.cli.recipe_files import written
from tests.cli.test_process import SOURCE, process

UNREACHABLE = ("bytes = 0.5", "bytes = 0.2\nparams = 0.01")


def make() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 4))


def folder_of(path: Path) -> RunFolder:
    return RunFolder(path.parent / "runs" / digest(identity(read_recipe(path))))


def listing(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def accuracy(model: nn.Module) -> float:
    """Oracle: right answers on the data of ``held:out``, counted one by one."""
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(4))
    right = sum(int(model(row[None]).argmax()) == int(row[:4].argmax()) for row in x)
    return 100 * right / len(x)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One whole run in a folder that holds the user's files alone, and what it printed."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "nets.py").write_text(NETS)
    save_file(dense_state(), folder / "dense.safetensors")
    written(folder)
    return folder, process("compress", "recipe.toml", folder=folder)


@pytest.fixture
def again(finished: tuple[Path, Any], nets: Path) -> Path:
    """The same files and the finished run at another place, which is the current directory."""
    shutil.copytree(finished[0], nets, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    sys.modules.pop("held", None)
    return nets


def test_a_met_goal_is_code_0_with_everything_in_the_folder(again: Path, finished: tuple[Path, Any]) -> None:
    printed = finished[1]
    assert printed.returncode == 0, printed.stderr
    assert printed.stderr == ""  # no bars and no lines where nobody looks
    folder = folder_of(again / "recipe.toml")
    files = ("recipe.toml", "plan.json", "environment.json", "trials.jsonl", "record.json", "report.html")
    assert all((folder.path / name).is_file() for name in (*files, "model.safetensors"))
    assert folder.points() >= 1
    record = folder.record()
    chosen = next(point for point in record["points"] if point["key"] == record["chosen"])
    model = folder.path / "model.safetensors"
    assert model.stat().st_size == chosen["bytes"] <= 0.5 * record["dense"]["bytes"]
    small = sc.load(model, into=make)
    assert isinstance(small, nn.Module)
    assert chosen["test"]["value"] == pytest.approx(accuracy(small.eval()))
    assert "goal: at most 50 points lost" in printed.stdout
    assert f"runs/{folder.path.name}/model.safetensors: the chosen model" in printed.stdout
    assert (folder.path / "recipe.toml").read_text() == (again / "recipe.toml").read_text()


def test_running_again_prints_the_result_at_once(
    run: Run, again: Path, finished: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(again)

    def called(*_: Any) -> None:
        raise AssertionError("a finished run builds nothing")

    monkeypatch.setattr(running, "prepare", called)
    assert run("compress", "recipe.toml").stdout == finished[1].stdout
    record = json.loads(run("compress", "recipe.toml", "--json").stdout)
    assert record["met"] is True
    assert listing(again) == before


def test_a_goal_that_is_not_met_is_code_3_with_the_frontier(run: Run, nets: Path) -> None:
    path = written(nets, UNREACHABLE, ("trials = 2", "trials = 1"))
    for _ in range(2):  # the second time from its record
        printed = run("compress", "recipe.toml", code=3).stdout
        assert "NOT MET" in printed
        assert "frontier: " in printed
    assert (folder_of(path).path / "model.safetensors").is_file()


def test_a_dry_run_writes_nothing(run: Run, nets: Path) -> None:
    path = written(nets)
    before = listing(nets)
    printed = run("compress", "recipe.toml", "--dry-run").stdout
    words = " ".join(printed.split())
    assert "at most 50 points lost, a file of at most 50 % of dense" in words
    assert "1. after training: take channels out, by l2, global, sparsity searched" in words
    assert "2. after training: mask, unit weight, by magnitude" in words
    assert "at most 2 points: 16 steps of" in words  # 2 points x 2 stages x 2 epochs x 2 batches
    assert f"runs/{folder_of(path).path.name} (new)" in words
    assert "0 Linear 40 x 20 840 800 40 in group 0.weight" in words
    assert "2 Linear 4 x 40 164 160 none: it is an output of the model" in words
    written(nets, ('unit = "channel"', 'unit = "channel( out , weights )"'))
    scored = " ".join(run("compress", "recipe.toml", "--dry-run").stdout.split())
    assert "take channels out, scored (out, weights), by l2, global" in scored
    written(nets)
    told = json.loads(run("compress", "recipe.toml", "--dry-run", "--json").stdout)
    assert told["cost"]["points"] == 2
    assert told["state"] == "new"
    assert digest(told["plan"]) == folder_of(path).path.name
    assert listing(nets) == before


def test_a_dry_run_takes_a_recipe_with_patience(run: Run, nets: Path) -> None:
    written(nets, ("epochs = 2", "epochs = 2\npatience = 1"))
    assert "at most 2 points: 16 steps of" in " ".join(run("compress", "recipe.toml", "--dry-run").stdout.split())


def test_a_dry_run_says_what_is_unexpected(run: Run, nets: Path) -> None:
    changes = (('test = "held:out"\n', ""), ('unit = "channel"', 'when = "before"\nunit = "channel"'))
    written(nets, *changes, ('checkpoint = "dense.safetensors"\n', ""))
    words = " ".join(run("compress", "recipe.toml", "--dry-run").stdout.split())
    assert 'a stage "before" training begins with fresh weights' in words
    assert "no checkpoint: the weights are those that the factory makes" in words
    assert "no [data] test: the figures told are those that the search chose by" in words


def test_a_model_that_cannot_be_traced_can_be_masked(run: Run, nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no two runs of this model are alike")

    monkeypatch.setattr(groups, "find_groups", refuse)
    written(nets, ('[[stage]]\nunit = "channel"\ncriterion = "l2"\n\n', ""))
    printed = run("compress", "recipe.toml", "--dry-run").stdout
    assert "which channels may go is not known: no two runs of this model are alike" in printed
    assert "40 x 20" in printed


def test_mistakes_are_code_2_on_standard_error(run: Run, nets: Path) -> None:
    written(nets, ("max_drop", "max_dorp"), ('"nets:make"', '"nets:mak"'))
    result = run("compress", "recipe.toml", code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("secateur compress: recipe.toml has 2 mistakes; nothing was done:\n  line 2: ")
    assert not (nets / "runs").exists()


def test_a_second_run_is_refused_while_one_writes(run: Run, nets: Path) -> None:
    folder = folder_of(written(nets))
    with folder.locked():
        message = run("compress", "recipe.toml", code=2).stderr
    assert "another run writes in this folder (process " in message
    assert folder.state() == "new"


def test_other_versions_are_said(run: Run, again: Path) -> None:
    folder = folder_of(again / "recipe.toml")
    (folder.path / "record.json").unlink()
    old = folder.read("environment.json")
    old["packages"]["torch"] = "1.0"
    folder.write("environment.json", old)
    message = run("compress", "recipe.toml").stderr
    assert f"continued under other versions (torch 1.0 -> {torch.__version__})" in message
    (folder.path / "record.json").write_text("{}")
    assert "Delete this file and run again" in run("compress", "recipe.toml", code=2).stderr


SLOW = """
import time
from pathlib import Path

def slowly(output, labels):
    if Path("hold").exists() and any(Path().rglob("points/*.safetensors")):
        time.sleep(1)  # so that the second training lasts until it is interrupted
    return nn.functional.cross_entropy(output, labels)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    # What a shell starts in the background ignores the signal, and so would its children.
    begin = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('secateur.cli', run_name='__main__')"
    )
    command = [sys.executable, "-c", begin, "compress", "recipe.toml"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue_and_the_result_is_the_same(run: Run, nets: Path) -> None:
    (nets / "nets.py").write_text(NETS + SLOW)
    path = written(nets, ('"cross_entropy"', '"nets:slowly"'), ("epochs = 2", "epochs = 8"))
    folder = folder_of(path)
    (nets / "hold").touch()
    started = start(nets)
    deadline = time.monotonic() + 120
    while folder.points() < 1 and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    out, message = started.communicate(timeout=60)
    (nets / "hold").unlink()
    assert started.returncode == INTERRUPTED, f"{message}\n{out}\n{folder.points()} points"
    assert out == ""
    assert message.splitlines()[-1] == (
        f"secateur compress: interrupted; 1 point is kept in {folder.path.relative_to(nets)}. "
        "To continue: secateur compress recipe.toml"
    )
    assert "Traceback" not in message
    run("compress", "recipe.toml")
    other = nets / "other"
    other.mkdir()
    whole = written(other, ('"cross_entropy"', '"nets:slowly"'), ("epochs = 2", "epochs = 8"), ('"dense', '"../dense'))
    run("compress", str(whole))
    assert folder_of(whole).path.name == folder.path.name
    models = [(one.path / "model.safetensors").read_bytes() for one in (folder, folder_of(whole))]
    assert models[0] == models[1]


def test_the_weights_of_the_checkpoint_are_compressed(run: Run, nets: Path) -> None:
    """Without training what is left of the weights is the checkpoint's."""
    written(nets, ('criterion = "l2"', "epochs = 0"), ('when = "after"', "epochs = 0"), ("trials = 2", "trials = 1"))
    run("compress", "recipe.toml")
    small = sc.load(folder_of(nets / "recipe.toml").path / "model.safetensors", into=make)
    kept = small[2].weight[small[2].weight != 0]
    assert torch.isin(kept, dense_state()["2.weight"]).all()
