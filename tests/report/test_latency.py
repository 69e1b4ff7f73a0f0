"""The latency page says what the records of speed say: runtimes, layers, the roofline, and refuses what cannot be."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from secateur.records import Explanation, Report, Rivals
from secateur.report import to_html
from secateur.report.speed import models, slow_layers
from secateur.report.speed_plots import race_plot, roofline_plot, speed_layers_plot
from secateur.report.speed_words import layers_sentence, race_sentence, roof_sentence
from tests.report.fake import fake_record, fake_report
from tests.report.fake_speed import fake_explanation, fake_line, fake_race, many_layers
from tests.report.reading import Page, read_page
from tests.report.test_html import EVIL

NOTHING = Report("Speed", (), ())
SLOW = (
    fake_line("fast", us=2.0),  # 50 of 100 GFLOP/s
    fake_line("slow", us=8.0),  # 12.5 of 100
    fake_line("slower", us=5.0),  # 20 of 100, less to win
    fake_line("torch's", us=100.0, dense_us=100.0, program=None, layout="torch"),
)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Page:
    speed = [fake_explanation(*SLOW), fake_race()]
    return read_page(to_html(NOTHING, tmp_path_factory.mktemp("speed") / "speed.html", speed=speed))


def test_the_records_come_back_out_of_the_page(read: Page) -> None:
    explained, race = read.script_json("speed")
    assert Explanation.from_record(explained) == fake_explanation(*SLOW)
    assert Rivals.from_record(race) == fake_race()


def test_every_plot_has_its_place_words_and_table(read: Page) -> None:
    places = [element for element in read.all("div") if "data-plot" in element.attributes]
    assert [e.attributes["data-plot"] for e in places] == ["race-0-0", "speed-layers-0-0", "roofline-0-0"]
    assert all(e.attributes["role"] == "img" and e.attributes["aria-label"] for e in places)
    assert set(read.script_json("payload")["plots"]) == {e.attributes["data-plot"] for e in places}
    assert [e.attributes.get("id") for e in read.all("section")] == ["speed-0"]  # no section is empty
    assert all(e.attributes["tabindex"] == "0" and e.attributes["aria-label"] for e in read.all("div", role="region"))


def test_the_layer_table_has_the_numbers_of_the_records(read: Page) -> None:
    ((first, slow, _, dense, *rest),) = read.tables("speed-layers")
    assert first == ["fast", "90.0", "unstructured", "even", "10.0", "2.00", "5.00", "50.0", "5.00", "50"]
    assert slow[-3:] == ["12.5", "5.00", "12"]
    assert dense[3] == "torch"
    assert [row[0] for row in rest] == ["conversions, sums", "torch and Python", "whole model"]
    assert rest[-1][4:7] == ["134", "117", "1.15"]


def test_the_table_of_runtimes_has_all_and_the_reasons(read: Page) -> None:
    (rows,) = read.tables("speed-runtimes")
    assert [row[0] for row in rows] == [row.name for row in fake_race().rows]
    assert rows[3][1:] == ["float32", "70.0", "66.5 – 77.0", "1.00", "1e-06", "best dense float32"]
    assert rows[5][1] == "float32, sparse"
    assert rows[6][1:] == ["float32", "–", "–", "–", "–", "not installed"]
    assert "compile: not installed: needs a C++ compiler" in [item.text.strip() for item in read.all("li")]


def test_runtimes_stand_from_fast_to_slow_and_bf16_is_told_apart_twice() -> None:
    plot = race_plot(fake_race())
    assert plot is not None
    assert [trace["x"][0] for trace in plot["data"]] == [25.0, 38.8, 70.0, 76.1, 120.5]  # without the twin
    assert [bool(trace["marker"]["pattern"]["shape"]) for trace in plot["data"]] == [False, True, False, False, False]
    assert plot["layout"]["yaxis"]["ticktext"][1].startswith("openvino-bf16<br>bfloat16")
    colours = [trace["marker"]["color"] for trace in plot["data"]]
    assert colours[0] not in colours[1:]
    sides = plot["data"][0]["error_x"]
    assert (sides["array"][0], sides["arrayminus"][0]) == (pytest.approx(2.5), pytest.approx(1.25))


def test_small_times_are_drawn_in_microseconds() -> None:
    rows = tuple(
        dataclasses.replace(row, median_ms=1e-3, p10_ms=9e-4, p90_ms=2e-3) if row.median_ms else row
        for row in fake_race().rows
    )
    plot = race_plot(fake_race(rows=rows))
    assert plot is not None
    assert plot["layout"]["xaxis"]["ticksuffix"] == " µs"
    assert plot["data"][0]["x"] == [pytest.approx(1.0)]


def test_the_roofline_has_a_point_per_layer_and_the_roofs() -> None:
    found = fake_explanation(*SLOW)
    plot = roofline_plot(found)
    assert plot is not None
    points = {trace["name"]: trace for trace in plot["data"] if trace["mode"] == "markers"}
    slow = points["packed, under half of its roof"]
    assert (slow["x"], slow["y"]) == ([5.0, 5.0], [12.5, 20.0])
    assert points["packed"]["y"] == [50.0]
    assert points["torch runs it"]["y"] == [1.0]
    assert len({trace["marker"]["symbol"] for trace in points.values()}) == 3
    lines = [trace for trace in plot["data"] if trace["mode"] == "lines"]
    for line, gbps in zip(lines[:3], (110.0, 80.0, 25.0), strict=True):
        assert all(y == pytest.approx(gbps * x) for x, y in zip(line["x"], line["y"], strict=True))
        assert line["y"][-1] == pytest.approx(100.0)  # up to the flat roof
    assert lines[3]["y"] == pytest.approx([100.0] * 25)
    widths = [line["line"]["width"] for line in lines]
    assert widths[0] > widths[1] == widths[2]  # all of it fits into the second cache
    for axis in ("xaxis", "yaxis"):
        low, high = (10**end for end in plot["layout"][axis]["range"])
        values = [value for trace in plot["data"] for value in trace[axis[0]]]
        assert low < min(values)
        assert max(values) <= high * 1.0001


def test_bf16_layers_have_a_roof_of_their_own() -> None:
    found = fake_explanation(fake_line(flops=3_000_000, us=20.0), fake_line("pairs", layout="pairs-bf16", us=1.9))
    plot = roofline_plot(found)
    assert plot is not None
    flat = [trace["y"][0] for trace in plot["data"] if trace["mode"] == "lines" and len(set(trace["y"])) == 1]
    assert flat == [pytest.approx(100.0), pytest.approx(200.0)]
    assert found.roof_of(found.layers[0]) == 100.0
    assert found.roof_of(dataclasses.replace(found.layers[1], flops=3_000_000)) == 200.0


def test_what_is_far_from_its_roof_is_named_by_what_it_costs() -> None:
    found = fake_explanation(*SLOW)
    assert [(line.name, share) for line, share in slow_layers(found)] == [("slow", 0.125), ("slower", 0.2)]
    said = roof_sentence(found)
    assert "2 of 3 packed layers run at under half" in said
    assert "slow (12 % of its roof), slower (20 % of its roof)" in said
    assert "save 11.0 µs of 116" in said  # 8 * .875 + 5 * .8
    assert "second cache" in said
    assert "All 1 packed layers reach" in roof_sentence(fake_explanation())
    assert "torch runs them all" in roof_sentence(fake_explanation(SLOW[3]))
    big = fake_explanation(*SLOW, fake_line("big", weight_bytes=1 << 26))
    assert "comes from memory" in roof_sentence(big)


def test_sentences_of_the_race() -> None:
    said = race_sentence(fake_race())
    assert said.startswith(
        "packed takes 25.0 ms at batch 1, 1 thread, 2.80 × as fast as the best dense float32 runtime"
    )
    assert "openvino-bf16, takes 38.8 ms" in said
    same = tuple(dataclasses.replace(row, gain_range=(0.9, 1.1)) for row in fake_race().rows)
    assert "cannot be told apart" in race_sentence(fake_race(rows=same))
    without = tuple(row for row in fake_race().rows if row.dense)
    assert race_sentence(fake_race(rows=without)).startswith("no sparse runtime was timed")
    assert race_sentence(fake_race(best=None)).startswith("no dense float32 runtime was timed")


def test_several_threads_are_said() -> None:
    assert "timed on one thread, the whole on up to 2" in layers_sentence(fake_explanation(threads=2))
    assert "one thread" not in layers_sentence(fake_explanation())


def test_many_layers_keep_their_order_and_get_room() -> None:
    lines = many_layers(120)
    layout = speed_layers_plot(fake_explanation(*lines))["layout"]
    assert layout["height"] > 120 * 20
    assert [label.strip()[-12:] for label in layout["yaxis"]["ticktext"]] == [line.name[-12:] for line in lines]


def test_without_roofs_the_page_says_why(tmp_path: Path) -> None:
    for changes, reason in (
        ({"no_roofs": "the C++ core is absent, which measures them"}, "No roofline: the C++ core is absent"),
        ({}, "explain(roofs=True) do that"),
    ):
        path = to_html(fake_explanation(roofs=None, **changes), tmp_path / "page.html")
        page = read_page(path)
        assert any(reason in p.text for p in page.all("p"))
        assert set(page.script_json("payload")["plots"]) == {"whole-0-0", "speed-layers-0-0"}
        assert len(page.tables("speed-layers")[0][0]) == 9


def test_nothing_gained_is_a_page_too(tmp_path: Path) -> None:
    bare = Explanation((), 0.0, 0.0, 0.0, "no layer that the runtime knows has zeros in its weights")
    page = read_page(to_html(bare, tmp_path / "page.html"))
    assert any("no gain: stay dense; no layer" in p.text for p in page.all("p"))
    assert page.script_json("payload")["plots"] == {}
    unused = fake_explanation(fake_line(flops=0))
    page = read_page(to_html(unused, tmp_path / "page.html"))
    assert any("No roofline: no layer has a weight that is not 0" in p.text for p in page.all("p"))


def test_records_of_both_kinds_stand_on_one_page(tmp_path: Path) -> None:
    page = read_page(to_html(fake_report(), tmp_path / "page.html", speed=[fake_explanation(), fake_race()]))
    ids = [e.attributes.get("id") for e in page.all("section")]
    assert ids.index("results") < ids.index("speed-0") < ids.index("bytes")
    assert {"accuracy", "race-0-0", "roofline-0-0"} <= set(page.script_json("payload")["plots"])
    assert any("2.80\u00a0×" in p.text or "2.80 ×" in p.text for p in page.all("p"))
    alone = read_page(to_html(fake_record(), tmp_path / "alone.html"))
    assert alone.all("script", id="speed") == []


def test_models_are_told_apart_by_their_titles(tmp_path: Path) -> None:
    one, two = fake_explanation(), fake_explanation(title="other.safetensors")
    found = models([one, two, fake_race()])
    assert [(model.name, len(model.explained), len(model.rivals)) for model in found] == [
        ("net.safetensors", 1, 1),
        ("other.safetensors", 1, 0),
    ]
    assert [model.name for model in models([fake_explanation(title=""), fake_race()])] == ["net.safetensors"]
    assert [model.name for model in models([fake_explanation(title="")])] == ["packed model"]
    page = read_page(to_html(NOTHING, tmp_path / "page.html", speed=[one, two, fake_race(), fake_race(batch=16)]))
    assert [e.text for e in page.all("h2")] == ["Speed: net.safetensors", "Speed: other.safetensors"]
    assert len(page.script_json("payload")["plots"]) == 2 + 2 + 3


def test_evil_names_stay_text(tmp_path: Path) -> None:
    speed = [fake_explanation(fake_line(EVIL, pattern=EVIL, layout=EVIL), title=EVIL), fake_race(title=EVIL)]
    text = to_html(Report(EVIL, (), ()), tmp_path / "evil.html", speed=speed).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<img" not in text.partition("<script type=")[0].partition("</style>")[2]
    assert read_page(tmp_path / "evil.html").tables("speed-layers")[0][0][2] == EVIL.replace("\u2028", "\u2028")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (fake_explanation(fake_line(us=0.0)), "layer 'conv': us = 0.0: expected a number above 0"),
        (fake_explanation(fake_line(dense_us=math.nan)), "dense_us = nan"),
        (fake_explanation(fake_line(flops=-1)), "flops = -1: expected a whole number from 0 on"),
        (fake_explanation(fake_line(flops="many")), "flops = 'many'"),
        (fake_explanation(fake_line(name=3)), "name = 3: expected a text"),
        (fake_explanation(threads=True), "threads = True"),
        (fake_explanation(environment="here"), "environment = 'here': expected a record"),
        (fake_race(notes=None), "notes = None: expected a list"),
        (fake_explanation(us=math.inf), "us = inf"),
        (fake_explanation(roofs=dataclasses.replace(fake_explanation().roofs, bandwidths=())), "without a bandwidth"),
        (fake_explanation(roofs=dataclasses.replace(fake_explanation().roofs, gflops=0.0)), "gflops = 0.0"),
        (fake_race(rows=(dataclasses.replace(fake_race().rows[0], p90_ms=None),)), "'eager': p90_ms = None"),
        (json.loads("{}"), "expected what explain"),
    ],
)
def test_times_that_cannot_be_are_refused(record: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".*" + words.replace("(", r"\(")):
        to_html(NOTHING, tmp_path / "page.html", speed=[record])
    assert list(tmp_path.iterdir()) == []


def test_nothing_at_all_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is nothing to show"):
        to_html(NOTHING, tmp_path / "page.html")
