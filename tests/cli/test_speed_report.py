"""``secateur report`` takes files of measure, pack and bench in any mix, and says what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import secateur as sc
from secateur.cli.functions import make_model
from secateur.cli.report import read_records
from secateur.records import Explanation
from secateur.runtime import roofs as measuring
from tests.native.oracle import needs_core
from tests.report.fake import fake_record
from tests.report.fake_speed import fake_explanation, fake_race
from tests.report.reading import read_page


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "explain.json", fake_explanation().to_dict())
    write(tmp_path / "bench.json", [fake_race().to_record(), fake_race(batch=16).to_record()])
    write(tmp_path / "record.json", fake_record().to_record())
    return tmp_path


def test_any_mix_is_told_apart_by_content(run: Any, folder: Path) -> None:
    (folder / "record.json").rename(folder / "explain_not.json")
    printed = run(
        "report", "bench.json", "explain_not.json", "explain.json", "-o", "page.html", "--title", "All"
    ).stdout
    assert "wrote page.html" in printed
    page = read_page(folder / "page.html")
    plots = page.script_json("payload")["plots"]
    assert {"accuracy", "race-0-0", "race-0-1", "speed-layers-0-0", "roofline-0-0"} <= set(plots)
    assert [e.text for e in page.all("h1")] == ["All"]
    assert page.script_json("report")["names"] == ["explain_not"]


@pytest.mark.parametrize("files", [["explain.json"], ["bench.json"], ["explain.json", "bench.json"], ["record.json"]])
def test_each_alone(run: Any, folder: Path, files: list[str]) -> None:
    run("report", *files, "-o", "page.html")
    ids = [e.attributes.get("id") for e in read_page(folder / "page.html").all("section")]
    assert ("results" in ids) == ("record.json" in files)
    assert ("speed-0" in ids) == (files != ["record.json"])


def test_one_race_without_its_list_and_a_record_without_a_title(folder: Path) -> None:
    write(folder / "one.json", fake_race(title="").to_record())
    report, (race,) = read_records([folder / "one.json"], "t")
    assert report.records == ()
    assert race.title == "one"


def test_wrong_files_say_what_is_wrong(run: Any, folder: Path) -> None:
    good = fake_explanation().to_dict()
    wrong: list[tuple[str, Any, str]] = [
        ("a.json", [], "a JSON list, not a record of"),
        ("b.json", [1, 2], "a JSON list, not a record of"),
        ("c.json", 3, "a JSON int, not a record of"),
        ("d.json", {"speed": 1}, "not a record of"),
        ("e.json", good | {"us": "fast"}, "not what `secateur pack --json` writes (Explanation 'net.safetensors': us"),
        ("f.json", good | {"more": 1}, "not what `secateur pack --json` writes (Explanation: keys ['more']"),
        ("g.json", good | {"layers": 7}, "not what `secateur pack --json` writes"),
        ("h.json", [fake_race().to_record() | {"rows": [3]}], "not what `secateur bench --json` writes"),
    ]
    for name, value, words in wrong:
        write(folder / name, value)
        done = run("report", "explain.json", name, "-o", "page.html", code=2)
        said = " ".join(done.stderr.replace("│", " ").split())
        assert f"{name}: " in said, said
        assert words in said, said
        assert not (folder / "page.html").exists()
    done = run("report", "explain.json", "explain.json", "-o", "page.html", code=2)
    assert "explain.json is given twice" in done.stderr


def test_pictures_need_a_record(run: Any, folder: Path) -> None:
    assert "--png" in run("report", "explain.json", "--png", "pictures", "-o", "page.html", code=2).stderr
    run("report", "explain.json", "record.json", "--png", "pictures", "-o", "page.html")
    assert (folder / "pictures" / "latency.png").exists()


@needs_core
def test_from_pack_to_the_page(run: Any, nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runtime.choose._ROUNDS", 1)
    monkeypatch.setattr("secateur.runtime.choose.interleaved", lambda calls: [1.0, *[2.0] * (len(calls) - 1)])
    monkeypatch.setattr("secateur.deploy.pack.packed.interleaved", lambda calls, seconds: [1.0, 2.0])
    monkeypatch.setattr(measuring, "_SECONDS", dict.fromkeys(("peak", *measuring._SECONDS), 1e-4))
    measuring.measure_roofs.cache_clear()
    net = make_model("nets:make")
    sc.prune(net, 0.9)
    sc.save(net, nets / "sparse.safetensors")
    shape = ("--shape", "1,20", "--threads", 1, "--json", "explain.json")
    run("pack", "sparse.safetensors", "--model", "nets:make", *shape)
    found = Explanation.from_record(json.loads((nets / "explain.json").read_text()))
    assert found.title == "sparse.safetensors"
    assert found.roofs is not None
    assert found.environment is not None
    assert found.samples == 1
    run("report", "explain.json", "-o", "page.html")
    page = read_page(nets / "page.html")
    assert "roofline-0-0" in page.script_json("payload")["plots"]
    assert Explanation.from_record(page.script_json("speed")[0]) == found
    measuring.measure_roofs.cache_clear()
