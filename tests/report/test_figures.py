"""Figures are valid files with one mark per number, and leave matplotlib's global state alone."""

from __future__ import annotations

import dataclasses
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from secateur.records import Report
from secateur.report import KINDS, figure
from tests.report.fake import fake_record, fake_report

SVG = "{http://www.w3.org/2000/svg}"


def marks(path: Path) -> dict[str, list[ET.Element]]:
    """Elements with an id of ours, each with the marks (``use``) and paths below it."""
    root = ET.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    ours = [e for e in root.iter() if ":" in e.attrib.get("id", "")]
    return {e.attrib["id"]: [x for x in e.iter() if x.tag in (f"{SVG}use", f"{SVG}path")] for e in ours}


def corners(element: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", element.attrib["d"])]


def width(element: ET.Element) -> float:
    xs = [x for x, _ in corners(element)]
    return max(xs) - min(xs)


@pytest.mark.parametrize("kind", KINDS)
def test_png_is_a_picture_with_something_on_it(kind: str, tmp_path: Path) -> None:
    path = figure(fake_report(2), kind, tmp_path / "new" / f"{kind}.png")
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 300
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    tint = np.array([0xD5, 0x5E, 0x00])  # the second record's colour
    assert (np.abs(pixels.astype(int) - tint).max(axis=1) < 8).sum() > 20


def test_accuracy_has_one_point_per_model(tmp_path: Path) -> None:
    found = marks(figure(fake_report(), "accuracy_vs_compression", tmp_path / "a.svg"))
    points = {name: [e for e in below if e.tag == f"{SVG}use"] for name, below in found.items()}
    assert list(points) == [f"accuracy:{i}" for i in range(2 + 6)]
    assert all(len(uses) == 1 for uses in points.values())
    places = [(float(u[0].attrib["x"]), float(u[0].attrib["y"])) for u in points.values()]
    compression = [1.0, 1.0, *(r.compression for r in fake_report().records)]
    x = np.array([place[0] for place in places])
    slope, offset = np.polyfit(np.log10(compression), x, 1)
    np.testing.assert_allclose(x, offset + slope * np.log10(compression), atol=0.01)
    top1 = [0.9778, 0.9861, *(r.sparse.accuracy[1].top1 for r in fake_report().records)]
    assert np.argsort(top1, kind="stable").tolist() == np.argsort([-y for _, y in places], kind="stable").tolist()


def test_schedule_has_one_mark_per_update(tmp_path: Path) -> None:
    found = marks(figure(fake_report(), "schedule", tmp_path / "s.svg"))
    assert list(found) == ["schedule:1", "schedule:2", "schedule:4"]
    assert all(len([e for e in below if e.tag == f"{SVG}use"]) == 16 for below in found.values())


def test_latency_bars_are_as_long_as_the_medians(tmp_path: Path) -> None:
    report = fake_report()
    found = marks(figure(report, "latency", tmp_path / "l.svg"))
    assert len(found) == 6 * 2 * 2
    for indices in ((0, 1, 2, 3), (4, 5)):
        for place, batch in enumerate((1, 256)):
            scale = []
            for index in indices:
                for side in ("dense", "sparse"):
                    median = getattr(report.records[index], side).latency[place].median_ms
                    scale.append(width(found[f"latency:{batch}:1:{side}:{index}"][0]) / median)
            np.testing.assert_allclose(scale, scale[0], rtol=1e-4)


def test_layers_have_two_bars_each(tmp_path: Path) -> None:
    report = Report("two", ("a", "b"), (fake_record(1), fake_record(5)))
    found = marks(figure(report, "layers", tmp_path / "y.svg"))
    layers = [len(record.dense.layers) for record in report.records]
    assert layers == [5, 14]
    assert len(found) == 2 * 2 * sum(layers)
    for index, record in enumerate(report.records):
        for place, row in enumerate(record.sparse.layers):
            dense, kept = (width(found[f"layers:{index}:MACs:{side}:{place}"][0]) for side in ("dense", "kept"))
            assert kept / dense == pytest.approx(row.macs_kept / row.macs, abs=2e-3)


def test_names_are_text_and_stay_in_the_legend(tmp_path: Path) -> None:
    names = ("_private $x^2$ and $\\frac{", "<b>&")
    report = Report("t", names, (fake_record(1), fake_record(2)))
    for kind in KINDS:
        text = figure(report, kind, tmp_path / f"{kind}.svg").read_text(encoding="utf-8")
        written = re.findall(r"<!-- (.*?) -->", text)
        assert any("private $x^2$ and $\\frac{" in comment for comment in written), kind


def test_global_state_is_left_alone(tmp_path: Path) -> None:
    before, loaded = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    for kind in KINDS:
        figure(fake_record(1), kind, tmp_path / f"{kind}.png")
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def bare() -> Report:
    record = fake_record(0)
    empty = {"latency": (), "accuracy": (), "layers": ()}
    dense, sparse = dataclasses.replace(record.dense, **empty), dataclasses.replace(record.sparse, **empty)
    record = dataclasses.replace(record, dense=dense, sparse=sparse, measured_speedup=(), dense_self_ratio=())
    return Report("bare", ("a",), (record,))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_measured_is_not_drawn(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report 'bare': no record has a.* so there is none to draw"):
        figure(bare(), kind, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("pie", "a.png", "there is no figure 'pie'; there are accuracy_vs_compression, layers"),
        ("latency", "a.pdf", r"'a.pdf': a figure is written as .png or .svg"),
        ("latency", "a", "written as .png or .svg"),
    ],
)
def test_unknown_kinds_and_endings_are_refused(kind: str, name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        figure(fake_record(1), kind, tmp_path / name)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # type: ignore[arg-type]  # this is how Python blocks an import
    with pytest.raises(ImportError, match=r'needs matplotlib: pip install "secateur\[report\]"'):
        figure(fake_record(1), "schedule", tmp_path / "a.png")
