"""Mistakes: one message on standard error and code 2; errors of the user's own code keep their traceback."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from secateur.cli.app import app
from secateur.cli.bad_input import is_ours
from tests.cli.conftest import Run, dense_state

OUT = ("-o", "sparse.safetensors")
CUT = ("--sparsity", "0.5", *OUT)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "nets:mak"), "module 'nets' has no 'mak'; did you mean 'make'?"),
        (("--model", "net:make"), "there is no module 'net' here or on the path; did you mean 'nets'?"),
        (("--model", "secateur.benchmark.modls:LeNet5"), "did you mean 'models'?"),
        (("--model", "nets.py:make"), "names a file; did you mean nets:make?"),
        (("--model", "nets"), "write package.module:function"),
        (("--model", "nets:"), "write package.module:function"),
        (("--model", "nets:sized"), "needs arguments (width)"),
        (("--model", "nets:model"), "is a model already"),
        (("--model", "nets:text"), "returned a str"),
        (("--model", "nets:NETS_"), "has no 'NETS_'"),
        (("--model", "nets:__name__"), "is a str, not a function"),
        (("--model", "nets:make", "--criterion", "magnitud"), "did you mean 'magnitude'?"),
        (("--model", "nets:make", "--criterion", "nets:best"), "--criterion nets:best: module 'nets' has no 'best'"),
        (("--model", "nets:make", "--unit", "filtre"), "did you mean 'filter'?"),
        (("--model", "nets:make", "--unit", "2:4"), "write '2 of 4'"),
        (("--model", "nets:make", "--allocation", "earl"), "unknown allocation 'earl'"),
        (("--model", "nets:make", "--within", "rows"), "'rows'"),
        (("--model", "nets:make", "--targets", "7.weight"), "matches nothing"),
        (("--model", "nets:make", "--criterion", "snip"), "gradients"),
        (("--model", "nets:make", "--criterion", "snip", "--data", "nets:batches"), "loss= is needed"),
        (
            ("--model", "nets:make", "--criterion", "snip", "--data", "nets:batches", "--loss", "cross"),
            "no such loss; did you mean 'cross_entropy'?",
        ),
        (("--model", "nets:make", "--criterion", "large_init"), "init"),
        (("--model", "nets:make", "--weights", "none.safetensors"), "there is no such file"),
        (("--model", "nets:make", "--weights", "."), "it is a folder"),
        (("--model", "nets:make", "--weights", "nets.py"), "not a safetensors file"),
        (("--model", "nets:small", "--weights", "dense.safetensors"), "does not fit Linear"),
        (("--model", "nets:make", "--sparsity", "90"), "not per cent"),
        (("--model", "nets:make", "-o", "no/sparse.safetensors"), "its folder no does not exist"),
        (("--model", "nets:make", "-o", "."), "is a folder"),
    ],
)
def test_a_mistake_is_one_message(run: Run, nets: Path, options: tuple[str, ...], says: str) -> None:
    result = run("prune", *CUT, *options, code=2)
    assert says in result.stderr
    assert result.stderr.startswith("secateur prune: ")
    assert len(result.stderr.splitlines()) <= 2
    assert result.stdout == ""
    assert not (nets / "sparse.safetensors").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(run: Run, nets: Path, value: float) -> None:
    state = dense_state()
    state["2.weight"][1, 2] = value
    save_file(state, nets / "dense.safetensors")
    message = run("prune", "--model", "nets:make", "--weights", "dense.safetensors", *CUT, code=2).stderr
    assert "2.weight" in message
    assert not (nets / "sparse.safetensors").exists()


def test_a_sparsity_is_needed(run: Run) -> None:
    assert "sparsity is needed" in run("prune", "--model", "nets:make", *OUT, code=2).stderr


def test_usage_errors_are_code_2(run: Run) -> None:
    assert "--model" in run("prune", *CUT, code=2).stderr
    assert "--nodel" in run("prune", "--nodel", "nets:make", *CUT, code=2).stderr
    assert "prun" in run("prun", code=2).stderr


class Trap:
    """Pickles into a call that leaves a file behind."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("sprung"),)


def test_nothing_in_a_checkpoint_is_executed(run: Run, nets: Path) -> None:
    for name in ("old.pt", "new.pt"):
        torch.save({"0.weight": Trap()}, nets / name, _use_new_zipfile_serialization=name == "new.pt")
        message = run("prune", "--model", "nets:make", "--weights", name, *CUT, code=2).stderr
        assert "it could run code" in message
    (nets / "raw.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    assert "it could run code" in run("prune", "--model", "nets:make", "--weights", "raw.pt", *CUT, code=2).stderr
    assert not (nets / "sprung").exists()


def test_a_checkpoint_of_more_than_tensors_is_refused(run: Run, nets: Path) -> None:
    torch.save({"state_dict": dense_state(), "epoch": 3}, nets / "all.pt")
    message = run("prune", "--model", "nets:make", "--weights", "all.pt", *CUT, code=2).stderr
    assert "holds the keys state_dict, epoch" in message
    assert "a torch checkpoint" in run("inspect", "all.pt", code=2).stderr


def test_what_does_not_fit_is_listed(run: Run, nets: Path) -> None:
    state = dense_state()
    state["0.weight"] = state["0.weight"].half()
    del state["2.bias"]
    save_file({**state, "3.weight": torch.zeros(1)}, nets / "dense.safetensors")
    message = run("prune", "--model", "nets:make", "--weights", "dense.safetensors", *CUT, code=2).stderr
    assert "2.bias is missing" in message
    assert "3.weight is not in the model" in message
    assert "0.weight is float16 (40, 20), in the model float32 (40, 20)" in message


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_file_is_refused(run: Run, nets: Path, damage: str) -> None:
    run("prune", "--model", "nets:make", "--weights", "dense.safetensors", *CUT)
    path = nets / "sparse.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data[:-5] if damage == "cut" else data)
    files = ("--dense", "dense.safetensors", "--sparse", "sparse.safetensors", "--data", "nets:pair")
    message = run("measure", "--model", "nets:make", *files, code=2).stderr
    assert "sparse.safetensors" in message
    assert ("truncated" if damage == "cut" else "altered") in message


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--model", "nets:broken"), "inside the factory"),
        (("--model", "nets:make", "--data", "nets:broken_data"), "inside the loader"),
        (("--model", "nets:make", "--data", "nets:wrong_labels"), "batch_size"),
    ],
)
def test_errors_of_the_users_code_keep_their_traceback(nets: Path, options: tuple[str, ...], error: str) -> None:
    gradients = ("--criterion", "snip", "--loss", "cross_entropy")
    result = CliRunner().invoke(app, ["prune", *CUT, *options, *gradients])
    assert isinstance(result.exception, ValueError)
    assert error in str(result.exception)
    assert not is_ours(result.exception)


def test_a_module_that_imports_something_missing_keeps_its_traceback(nets: Path) -> None:
    (nets / "needs_more.py").write_text("import not_installed_anywhere\n")
    result = CliRunner().invoke(app, ["prune", *CUT, "--model", "needs_more:make"])
    assert isinstance(result.exception, ModuleNotFoundError)
    assert result.exception.name == "not_installed_anywhere"
