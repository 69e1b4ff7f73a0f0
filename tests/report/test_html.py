"""The page says what the records say, asks no network for anything, and cannot be broken out of."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from secateur.records import Report, SchedulePoint
from secateur.report import to_html
from secateur.report.plot_parts import DENSE
from secateur.report.plots import accuracy_plot
from secateur.report.series import DARK, LIGHT
from tests.report.fake import fake_record, fake_report
from tests.report.reading import Page, read_page

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'& ]]> <!-- \u2028 ${x} {{ 7*7 }}"


@pytest.fixture(scope="module")
def read(page: Path) -> Page:
    return read_page(page)


def test_the_records_come_back_out_of_the_page(read: Page) -> None:
    assert Report.from_record(read.script_json("report")) == fake_report()


def test_the_headline_table_has_the_numbers_of_the_records(read: Page) -> None:
    report = fake_report()
    (fit,), (time,) = read.tables("fit and size"), read.tables("time")
    assert [row[0] for row in fit] == [row[0] for row in time] == list(report.names)
    for row, late, record in zip(fit, time, report.records, strict=True):
        after = record.sparse.accuracy[1]
        assert f"→ {100 * after.top1:.1f} ± {100 * after.standard_error:.1f}".replace("± 0.", "± .") in row[1]
        assert [float(cell) for cell in row[2:5]] == [
            pytest.approx(100 * share, abs=0.05) for share in dataclasses.astuple(record.shares)
        ]
        for cell, speedup in zip(late[2::2], record.measured_speedup, strict=True):
            assert float(cell.split(" [")[0]) == pytest.approx(speedup, abs=0.005)
        dense, sparse = late[1].split(" [")[0].split(" → ")
        assert float(dense) == pytest.approx(record.dense.latency[0].median_ms, rel=0.005)
        assert float(sparse) == pytest.approx(record.sparse.latency[0].median_ms, rel=0.005)


def test_calibration_and_agreement(read: Page) -> None:
    report = fake_report()
    (fits,), (agreements,) = read.tables("fit"), read.tables("agreement")
    expected = [(n, row) for n, r in zip(report.names, report.records, strict=True) for row in r.sparse.accuracy]
    assert len(fits) == len(expected) == 12
    for cells, (name, row) in zip(fits, expected, strict=True):
        assert cells[:3] == [name, row.split, f"{row.samples:,}"]
        assert float(cells[4].split(" → ")[1]) == pytest.approx(row.nll, abs=5e-5)
        assert float(cells[5].split(" → ")[1]) == pytest.approx(100 * row.ece, abs=5e-3)
    assert agreements[0][1:] == ["360", "96.1", "1.67", "0.0483"]


def test_layer_tables_and_cost(read: Page) -> None:
    report, tables = fake_report(), read.tables("layers")
    assert len(tables) == len(report.records)
    for rows, record in zip(tables, report.records, strict=True):
        for cells, layer in zip(rows, record.sparse.layers, strict=True):
            counts = [int(cells[i].replace(",", "")) for i in (3, 4, 6, 7)]
            assert [cells[0], *counts] == [layer.name, layer.parameters, layer.kept, layer.macs, layer.macs_kept]
    (cost,) = read.tables("cost")
    assert cost[1][1:] == ["13.4", "13.1", "310", "0.0123 → 0.0122 (batch 1, package-0 (RAPL))"]
    assert cost[0][3] == "–"


def test_the_plots_have_the_numbers_of_the_records(read: Page) -> None:
    report, plots = fake_report(), read.script_json("payload")["plots"]
    accuracy = plots["accuracy"]["data"]
    assert len(accuracy) == 2 + len(report.records)
    for trace, record in zip(accuracy[2:], report.records, strict=True):
        fit = record.sparse.accuracy[1]
        assert (trace["x"], trace["y"]) == ([record.compression], [100 * fit.top1])
        assert trace["error_y"]["array"] == [100 * fit.standard_error]
    assert plots["accuracy"]["layout"]["xaxis"]["type"] == "log"
    assert {trace["x"][0] for trace in accuracy[:2]} == {1.0}
    for trace, index in zip(plots["schedule"]["data"], (1, 2, 4), strict=True):
        points = report.records[index].schedule
        assert list(zip(trace["x"], trace["y"], strict=True)) == [(p.step, 100 * p.sparsity) for p in points]
    dense, sparse = plots["latency-1"]["data"]
    for position, record in enumerate(report.records[:4]):
        row = record.sparse.latency[1]
        assert sparse["x"][position] == row.median_ms
        assert sparse["x"][position] + sparse["error_x"]["array"][position] == pytest.approx(row.high_ms)
        assert sparse["x"][position] - sparse["error_x"]["arrayminus"][position] == pytest.approx(row.low_ms)
        band = plots["latency-1"]["layout"]["shapes"][position]
        ratio = band["x1"] / record.dense.latency[1].median_ms
        itself = record.dense_self_ratio[1]
        assert max(ratio, 1 / ratio) == pytest.approx(max(itself, 1 / itself))
        assert dense["x"][position] == record.dense.latency[1].median_ms
    sizes = [(r.dense.sizes.plain_bytes, r.sparse.sizes.gzip_bytes, r.sparse.sizes.file_bytes) for r in report.records]
    drawn = [plots[f"bytes-{i}"]["data"] for i in (0, 1)]
    assert [t for traces in drawn for t in zip(*(trace["x"] for trace in traces), strict=True)] == sizes


def test_each_record_has_its_layer_plots_in_its_own_colour(read: Page) -> None:
    report, layers = fake_report(), read.script_json("payload")["layers"]
    assert list(layers) == [str(i) for i in range(6)]
    for index, record in enumerate(report.records):
        for what, whole, part in (("parameters", "parameters", "kept"), ("MACs", "macs", "macs_kept")):
            dense, kept = layers[str(index)][what]["data"]
            assert dense["x"] == [getattr(row, whole) for row in record.dense.layers]
            assert kept["x"] == [getattr(row, part) for row in record.sparse.layers]
            assert kept["marker"]["color"] == f"var(--c{index})"


def test_ten_records_have_ten_colours_in_either_theme() -> None:
    records = tuple(fake_record(index % 6) for index in range(10))
    plot = accuracy_plot(Report("ten", tuple(f"record {index}" for index in range(10)), records))
    assert plot is not None
    tints = [trace["marker"]["color"] for trace in plot["data"] if trace["marker"]["color"] != DENSE]
    assert tints == [f"var(--c{index})" for index in range(10)]
    assert len(set(LIGHT)) == len(set(DARK)) == 10
    looks = {(trace["marker"]["color"], trace["marker"]["symbol"]) for trace in plot["data"]}
    assert len(looks) == 11, "and the dense models"


@pytest.mark.parametrize(
    ("low", "expected"),
    [(0.05, [("resnet, lenet, dense", 98.61)]), (0.97, [("resnet, dense", 98.61), ("lenet, dense", 97.78)])],
)
def test_dense_models_that_are_nearly_as_accurate_share_a_label(low: float, expected: list[tuple[str, float]]) -> None:
    """Whether two labels meet follows from the range of the axis."""
    first, other = fake_record(0), fake_record(4)
    fits = tuple(dataclasses.replace(fit, top1=low) for fit in first.sparse.accuracy)
    poor = dataclasses.replace(first, sparse=dataclasses.replace(first.sparse, accuracy=fits))
    plot = accuracy_plot(Report("two", ("a", "b"), (poor, other)))
    assert plot is not None
    notes = plot["layout"]["annotations"]
    assert [(note["text"], pytest.approx(note["y"])) for note in notes] == expected
    assert len(plot["layout"]["shapes"]) == 2, "each line stays"


def test_plotly_is_inlined_exactly_once(page: Path) -> None:
    text, library = page.read_text(encoding="utf-8"), get_plotlyjs()
    assert text.count(library.strip()) == 1
    assert text.count("* plotly.js v") == 1


def test_nothing_is_asked_of_a_network(page: Path, read: Page) -> None:
    own = page.read_text(encoding="utf-8").replace(get_plotlyjs().strip(), "")
    assert re.findall(r"https?:|[\"'(]//|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", own) == []
    assert [e for e in read.elements if e.tag in ("link", "iframe", "object", "embed", "base", "form", "a")] == []
    sources = [e.attributes[key] for e in read.elements for key in ("src", "href", "srcset") if key in e.attributes]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_the_policy_allows_the_scripts_of_the_page_and_no_others(read: Page) -> None:
    (policy,) = read.all("meta", http_equiv="Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.attributes["content"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    running = [e.text for e in read.all("script") if e.attributes.get("type") != "application/json"]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert len(running) == 3


def test_names_are_never_markup(tmp_path: Path) -> None:
    record = fake_record(1, plan={"criterion": EVIL, EVIL: 1}, notes=(EVIL,), convention=EVIL)
    layers = tuple(dataclasses.replace(row, name=EVIL + row.name) for row in record.dense.layers)
    record = dataclasses.replace(
        record,
        dense=dataclasses.replace(record.dense, layers=layers, name=EVIL),
        sparse=dataclasses.replace(record.sparse, layers=layers),
    )
    report = Report(EVIL, (EVIL, "other"), (record, fake_record(4)))
    masks = {EVIL: {EVIL: np.ones((2, 2), dtype=bool)}}
    path = to_html(report, tmp_path / "evil.html", masks=masks)
    raw = path.read_text(encoding="utf-8")
    assert (raw.count("<script>alert"), raw.count("<img src=x")) == (0, 0)
    read = read_page(path)
    assert len(read.all("script")) == 5
    assert len(read.all("img")) == 1
    assert not [e for e in read.elements if any(key.startswith("on") for key in e.attributes)]
    assert [e.text for e in read.all("h1")] == [EVIL]
    assert read.tables("fit and size")[0][0][0] == EVIL
    assert Report.from_record(read.script_json("report")) == report
    assert any(EVIL in element.text for element in read.all("li"))
    assert json.loads(read.all("pre")[0].text) == record.plan
    # plotly reads a little HTML in its texts: names arrive there escaped
    drawn = json.dumps(read.script_json("payload"))
    assert "<script" not in drawn
    assert "<img" not in drawn


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    bare = fake_record(0, agreement=None, training=None, plan=None)
    empty = {"latency": (), "accuracy": (), "layers": (), "energy": ()}
    bare = dataclasses.replace(
        bare,
        dense=dataclasses.replace(bare.dense, **empty),
        sparse=dataclasses.replace(bare.sparse, **empty),
        measured_speedup=(),
        dense_self_ratio=(),
        notes=(),
    )
    read = read_page(to_html(bare, tmp_path / "bare.html"))
    assert [e.attributes["id"] for e in read.all("section")] == ["results", "bytes", "schedule", "notes", "environment"]
    assert [e.attributes["data-plot"] for e in read.elements if "data-plot" in e.attributes] == ["bytes-0"]
    assert "Made in one step" in next(e.text for e in read.all("section", id="schedule"))
    assert list(read.script_json("payload")["plots"]) == ["bytes-0"]


def test_infinite_and_missing_numbers_stay_valid(tmp_path: Path) -> None:
    record = fake_record(0, compression=float("inf"), theoretical_speedup=float("nan"), plan={"a": float("nan")})
    read = read_page(to_html(record, tmp_path / "odd.html"))
    assert read.script_json("report")["records"][0]["compression"] is None
    assert len(read.script_json("payload")["plots"].get("accuracy", {"data": []})["data"]) == 0
    (row,) = read.tables("fit and size")[0]
    assert row[7].startswith("∞ /")
    assert row[9] == "–"


def test_an_older_page_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    schedule = (SchedulePoint(0, 0.5, 10),)
    assert to_html(fake_record(0, schedule=schedule), path) == path
    assert read_page(path).script_json("report")["records"][0]["schedule"] == [dataclasses.asdict(schedule[0])]
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("module", ["jinja2", "plotly"])
def test_a_missing_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]  # this is how Python blocks an import
    with pytest.raises(ImportError, match=rf'needs {module}: pip install "secateur\[report\]"'):
        to_html(fake_record(0), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
