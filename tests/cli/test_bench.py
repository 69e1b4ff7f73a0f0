"""``secateur bench``: files and factories in, tables out, and mistakes as messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import secateur as sc
from secateur.cli.bad_input import as_message
from secateur.cli.bench import bench
from secateur.cli.functions import make_model
from secateur.measure.rivals import RUNTIMES, Rivals

Bench = Callable[..., Any]
QUICK = ("--runtimes", "eager", "--rounds", 5, "--budget", 1)
MODEL = ("--model", "nets:make")


@pytest.fixture
def run_bench(nets: Path) -> Bench:
    """``run_bench("dense.safetensors", ...)`` -> the result, as the program would run it."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("bench")(as_message(bench))

    def invoke(*arguments: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
        return result

    return invoke


@pytest.mark.slow
def test_a_table_and_a_record_per_batch_size(run_bench: Bench, nets: Path) -> None:
    sizes = ("--shape", "3,20", "--batch", 1, "--batch", 5, "--threads", 1)
    printed = run_bench("dense.safetensors", *MODEL, *sizes, *QUICK, "--json", "found.json").stdout
    found = [Rivals.from_record(one) for one in json.loads((nets / "found.json").read_text())]
    assert [(one.batch, one.threads, one.rounds, one.best) for one in found] == [(1, 1, 5, "eager"), (5, 1, 5, "eager")]
    assert [row.name for row in found[0].rows] == ["eager", "eager again"]
    assert all(row.off_by is not None and row.off_by < 1e-5 for one in found for row in one.rows)
    assert printed == "\n\n".join(map(str, found)) + "\n"
    assert printed.startswith("dense.safetensors: batch 1, 1 thread, 5 rounds\n")


@pytest.mark.slow
def test_a_sparse_file_and_data_of_the_users(run_bench: Bench, nets: Path) -> None:
    net = make_model("nets:make")
    sc.prune(net, 0.9)
    sc.save(net, nets / "sparse.safetensors")
    printed = run_bench("sparse.safetensors", *MODEL, "--data", "nets:batches", *QUICK).stdout
    assert printed.startswith("sparse.safetensors: batch 30, 1 thread, 5 rounds\n")


def test_nothing_timed_is_exit_code_3(run_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(RUNTIMES["openvino"], needs=("no_such_module_anywhere",))
    monkeypatch.setitem(RUNTIMES, "openvino", absent)
    arguments = ("dense.safetensors", *MODEL, "--shape", "1,20", "--runtimes", "openvino")
    printed = run_bench(*arguments, code=3).stdout
    assert 'openvino: not installed: no_such_module_anywhere: pip install "secateur[rivals]"' in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("dense.safetensors", "--shape", "1,20", "--runtimes", "onnx"), "did you mean 'onnxruntime'"),
        (("dense.safetensors", "--shape", "1,20", "--runtimes", ","), "no runtime to measure"),
        (("dense.safetensors", "--shape", "1;20"), "write the shape of an input"),
        (("dense.safetensors", "--shape", "1,0"), "write the shape of an input"),
        (("dense.safetensors", "--shape", "4000000000,20"), "more than"),
        (("dense.safetensors",), "either --shape"),
        (("dense.safetensors", "--shape", "1,20", "--data", "nets:pair"), "either --shape"),
        (("dense.safetensors", "--data", "nets:number"), "returned a int"),
        (("none.safetensors", "--shape", "1,20"), "there is no such file"),
        (("dense.safetensors", "--shape", "1,20", "--json", "no/r.json"), "no does not exist"),
        (("dense.safetensors", "--shape", "1,20", "--threads", "10000"), "processors"),
        (("dense.safetensors", "--shape", "1,20", "--rounds", "1"), "--rounds"),
    ],
)
def test_bad_input_to_bench(run_bench: Bench, arguments: tuple[str, ...], says: str) -> None:
    assert says in run_bench(*arguments, *MODEL, code=2).stderr
