"""``secateur pack``: a table and a file out of weights and a factory; code 3 where nothing was faster; refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import secateur as sc
from secateur.cli.functions import make_model
from secateur.deploy.pack import packed as packing
from secateur.runtime.choose import choose
from tests.native.oracle import needs_core

pytestmark = needs_core
MODEL = ("--model", "nets:make")
SHAPE = ("--shape", "1,20")


@pytest.fixture
def sparse_file(nets: Path) -> Path:
    net = make_model("nets:make")
    sc.prune(net, 0.9)
    sc.save(net, nets / "sparse.safetensors")
    return nets / "sparse.safetensors"


@pytest.fixture(autouse=True)
def sparse_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runtime.choose._ROUNDS", 1)
    monkeypatch.setattr("secateur.runtime.choose.interleaved", lambda calls: [1.0, *[2.0] * (len(calls) - 1)])
    monkeypatch.setattr(packing, "interleaved", lambda calls, seconds: [1.0, 2.0])


def test_a_table_a_record_and_a_file_that_loads(run: Any, nets: Path, sparse_file: Path) -> None:
    files = ("--out", "packed.safetensors", "--json", "explain.json")
    printed = run("pack", sparse_file, *MODEL, *SHAPE, "--threads", 1, *files).stdout
    found = json.loads((nets / "explain.json").read_text())
    assert [line["name"] for line in found["layers"]] == ["0", "2"]
    assert found["gain"] == 2.0
    assert "whole model" in printed
    assert "packed.safetensors: " in printed
    fast = sc.load(nets / "packed.safetensors")
    assert isinstance(fast, sc.PackedModel)
    model, x = make_model("nets:make"), torch.randn(3, 20)
    sc.load(sparse_file, into=model)
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-5)


def test_blobs_and_data_of_the_users(run: Any, nets: Path, sparse_file: Path) -> None:
    run("pack", sparse_file, *MODEL, "--data", "nets:batches", "-o", "plain")
    run("pack", sparse_file, *MODEL, "--data", "nets:batches", "-o", "blobs", "--blobs")
    assert (nets / "blobs").stat().st_size > (nets / "plain").stat().st_size
    assert sc.load(nets / "blobs").explain().dense_us > 0  # type: ignore[union-attr]


def test_another_number_format(run: Any, nets: Path, sparse_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "secateur.deploy.pack.region.choose",
        lambda *args, **options: asked.append(options["dtype"]) or choose(*args, **options),
    )
    run("pack", sparse_file, *MODEL, *SHAPE, "--dtype", "int8", "-o", "packed.safetensors")
    assert set(asked) == {torch.int8}
    assert "float16" in run("pack", sparse_file, *MODEL, *SHAPE, "--dtype", "float16", code=2).stderr


def test_the_cache_can_be_left_out(run: Any, nets: Path, sparse_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(nets / "cache"))
    run("pack", sparse_file, *MODEL, *SHAPE, "--no-cache")
    assert not (nets / "cache").exists()
    run("pack", sparse_file, *MODEL, *SHAPE)
    assert len(list((nets / "cache").glob("choices-*.json"))) == 1
    monkeypatch.setattr("secateur.deploy.pack.region.choose", lambda *args, **options: pytest.fail("measured again"))
    monkeypatch.setattr(packing, "interleaved", lambda calls, seconds: pytest.fail("measured again"))
    assert "whole model" in run("pack", sparse_file, *MODEL, *SHAPE).stdout


def test_nothing_faster_is_exit_code_3(
    run: Any, nets: Path, sparse_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "interleaved", lambda calls, seconds: [2.0, 1.0])
    printed = run("pack", sparse_file, *MODEL, *SHAPE, "-o", "packed", code=3).stdout
    assert "no gain: stay dense; the packed model was not faster than torch here" in printed
    assert (nets / "packed").exists()  # it may be on another machine
    with (nets / "nets.py").open("a") as file:
        file.write("\ndef bare():\n    return nn.Softmax(1)\n")
    sys.modules.pop("nets")
    save_file({}, nets / "bare.safetensors")
    printed = run("pack", "bare.safetensors", "--model", "nets:bare", *SHAPE, "-o", "none", code=3).stdout
    assert "no gain: stay dense; it has no layer that the runtime knows" in printed
    assert not (nets / "none").exists()


def test_what_cannot_be_written_is_told_after_the_table(run: Any, nets: Path, sparse_file: Path) -> None:
    with (nets / "nets.py").open("a") as file:
        file.write("\ndef mixed():\n    net = make()\n    net[1] = nn.Softmax(1)\n    return net\n")
    sys.modules.pop("nets")
    result = run("pack", sparse_file, "--model", "nets:mixed", *SHAPE, "-o", "packed", code=2)
    assert "whole model" in result.stdout
    assert "torch runs a part of this model beside its programs (aten.softmax.int)" in result.stderr
    assert not (nets / "packed").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sparse.safetensors", *MODEL), "either --shape"),
        (("sparse.safetensors", *MODEL, "--shape", "1;20"), "write the shape of an input"),
        (("none.safetensors", *MODEL, *SHAPE), "there is no such file"),
        (("sparse.safetensors", "--model", "nets:small", *SHAPE), "does not fit Linear"),
        (("sparse.safetensors", *MODEL, *SHAPE, "--blobs"), "--blobs is about the file of --out"),
        (("sparse.safetensors", *MODEL, *SHAPE, "--out", "no/packed"), "no does not exist"),
        (("sparse.safetensors", *MODEL, *SHAPE, "--json", "no/found"), "no does not exist"),
        (("sparse.safetensors", *MODEL, *SHAPE, "--threads", "0"), "--threads"),
    ],
)
def test_bad_input_to_pack(run: Any, sparse_file: Path, arguments: tuple[str, ...], says: str) -> None:
    assert sparse_file.exists()
    assert says in run("pack", *arguments, code=2).stderr


def test_other_commands_know_a_packed_file(run: Any, sparse_file: Path) -> None:
    run("pack", sparse_file, *MODEL, *SHAPE, "-o", "packed.safetensors")
    assert "packed model" in run("inspect", "packed.safetensors").stdout
    again = run("pack", "packed.safetensors", *MODEL, *SHAPE, code=2)
    assert "load it without into=" in again.stderr
    dense = ("--dense", "packed.safetensors", "--sparse", sparse_file, "--data", "nets:test")
    assert "is a packed model" in run("measure", *MODEL, *dense, code=2).stderr
