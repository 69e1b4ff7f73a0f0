"""``secateur measure`` and ``report``: prune, measure and draw, on the user's files."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from secateur.records import Record
from tests.cli.conftest import Run, dense_state

MODEL = ("--model", "nets:make", "--dense", "dense.safetensors")


def measured(run: Run, name: str, *options: object) -> str:
    run("prune", *MODEL[:2], "--weights", "dense.safetensors", "--sparsity", 0.8, "-o", f"{name}.safetensors")
    quick = ("--rounds", 5, "--batch", 1, "--batch", 16)
    files = ("--sparse", f"{name}.safetensors", "--data", "nets:batches", "--json", f"{name}.json")
    return run("measure", *MODEL, *files, *quick, *options).stdout


def accuracy_by_hand(state: dict[str, torch.Tensor], nets: Path) -> float:
    """Oracle: the network written out in float64."""
    x, y = importlib.import_module("nets").pair()
    hidden = (x.double() @ state["0.weight"].double().T + state["0.bias"].double()).clamp(min=0)
    return float(((hidden @ state["2.weight"].double().T + state["2.bias"].double()).argmax(1) == y).double().mean())


def test_the_record_holds_what_the_files_are(run: Run, nets: Path) -> None:
    printed = measured(run, "sparse", "--train", "nets:pair")
    record = Record.from_record(json.loads((nets / "sparse.json").read_text()))
    assert record.shares.units == pytest.approx(0.8)
    assert (record.dense.kept, record.sparse.kept) == (1004, 1004 - 768)
    assert [row.batch for row in record.sparse.latency] == [1, 16]
    assert all(row.rounds == 5 for row in record.sparse.latency)
    assert {row.split for row in record.dense.accuracy} == {"train", "test"}
    test = next(row for row in record.dense.accuracy if row.split == "test")
    assert test.top1 == pytest.approx(accuracy_by_hand(dense_state(), nets))
    assert record.plan is not None
    assert record.plan["sparsity"] == 0.8
    assert "sparse.safetensors against dense.safetensors" in printed
    assert "80.0" in printed


def test_the_table_says_everything_the_record_notes(run: Run, nets: Path) -> None:
    printed = " ".join(measured(run, "sparse").split())
    notes = json.loads((nets / "sparse.json").read_text())["notes"]
    assert notes
    for note in notes:  # among them why there is no gain where there is none, which depends on the machine's mood
        assert " ".join(note.split()) in printed


def test_two_plain_files_can_be_compared(run: Run, nets: Path) -> None:
    save_file({name: tensor * 0.5 for name, tensor in dense_state().items()}, nets / "other.safetensors")
    arguments = (
        "--sparse",
        "other.safetensors",
        "--data",
        "nets:pair",
        "--rounds",
        5,
        "--batch",
        1,
        "--json",
        "o.json",
    )
    run("measure", *MODEL, *arguments)
    record = Record.from_record(json.loads((nets / "o.json").read_text()))
    assert (record.compression, record.plan) == (1.0, None)


def test_the_report_is_one_page_with_every_record(run: Run, nets: Path) -> None:
    measured(run, "first")
    measured(run, "second")
    printed = run("report", "first.json", "second.json", "-o", "page.html", "--png", "plots").stdout
    page = (nets / "page.html").read_text()
    assert "first" in page
    assert "second" in page
    assert {path.name for path in (nets / "plots").iterdir()} == {
        "accuracy_vs_compression.png",
        "latency.png",
        "layers.png",
    }
    assert "left out schedule.png: no record has a schedule" in printed


def test_a_report_of_reports_keeps_their_names(run: Run, nets: Path) -> None:
    measured(run, "first")
    record = json.loads((nets / "first.json").read_text())
    several = {"title": "demo", "names": ["gradual", "snip"], "records": [record, record]}
    (nets / "demo.json").write_text(json.dumps(several))
    (nets / "again").mkdir()
    (nets / "again" / "first.json").write_text(json.dumps(record))
    run("report", "demo.json", "first.json", "again/first.json", "-o", "page.html", "--title", "All of it")
    page = (nets / "page.html").read_text()
    for name in ("demo: gradual", "demo: snip", "again/first", "All of it"):
        assert name in page


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such file"),
        ("{", "no JSON"),
        ("[1]", "not a record"),
        ('{"dense": 1}', "not a record"),
        ('{"records": 3, "names": [], "title": ""}', "not a record"),
        ('{"records": [], "names": [], "title": ""}', "has no records"),
    ],
)
def test_what_is_no_record_is_refused(run: Run, nets: Path, content: str | None, says: str) -> None:
    if content is not None:
        (nets / "record.json").write_text(content)
    message = run("report", "record.json", code=2).stderr
    assert says in message
    assert not (nets / "report.html").exists()


def test_a_record_given_twice_is_refused(run: Run) -> None:
    measured(run, "first")
    assert "first.json is given twice" in run("report", "first.json", "first.json", code=2).stderr


def test_a_missing_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(run, "first")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert 'pip install "secateur[report]"' in run("report", "first.json", code=2).stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--sparse", "sparse.safetensors", "--data", "nets:generator"), "which can be read once only"),
        (("--sparse", "none.safetensors", "--data", "nets:pair"), "there is no such file"),
        (("--sparse", "sparse.safetensors", "--data", "nets:number"), "returned a int"),
        (("--sparse", "sparse.safetensors", "--data", "nets:regression"), "labels are"),
        (("--sparse", "sparse.safetensors", "--data", "nets:pair", "--json", "no/r.json"), "no does not exist"),
        (("--sparse", "sparse.safetensors", "--data", "nets:pair", "--rounds", "0"), "--rounds"),
    ],
)
def test_bad_input_to_measure(run: Run, options: tuple[str, ...], says: str) -> None:
    run("prune", *MODEL[:2], "--weights", "dense.safetensors", "--sparsity", 0.8, "-o", "sparse.safetensors")
    assert says in run("measure", *MODEL, *options, code=2).stderr


def test_the_dense_side_has_to_be_dense(run: Run) -> None:
    run("prune", *MODEL[:2], "--weights", "dense.safetensors", "--sparsity", 0.8, "-o", "sparse.safetensors")
    files = ("--dense", "sparse.safetensors", "--sparse", "sparse.safetensors")
    assert "dense has masks" in run("measure", *MODEL[:2], *files, "--data", "nets:pair", code=2).stderr
