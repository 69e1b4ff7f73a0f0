"""Headless Chromium opens the page: every plot is drawn, in both themes, and nothing goes wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from secateur.records import Report
from secateur.report import to_html
from tests.report.fake import fake_record
from tests.report.fake_speed import fake_explanation, fake_line, fake_race, many_layers
from tests.report.test_html import EVIL

pytestmark = pytest.mark.browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--virtual-time-budget=3000",
    "--dump-dom",
    "--enable-logging=stderr",
    "--v=0",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def opened(page: Path, profile: Path, *options: str) -> str:
    """The document as it stands after the scripts ran; no line of the page's console may be an error."""
    if BROWSER is None:
        assert not os.environ.get("SECATEUR_REQUIRE_BROWSER"), (
            "no Chromium on PATH, and SECATEUR_REQUIRE_BROWSER is set"
        )
        pytest.skip("no Chromium on this machine")
    command = [BROWSER, *OPTIONS, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    return done.stdout


def root(dom: str) -> dict[str, str]:
    found = re.search(r"<html\b[^>]*>", dom)
    assert found, dom[:500]
    return dict(re.findall(r'([\w-]+)="([^"]*)"', found.group()))


def drawn(dom: str) -> list[str]:
    """Names of the plots that hold a drawing."""
    # plotly puts two drawings of class main-svg into each plot: the plot, and what floats above it
    parts = re.split(r'<div data-plot="', dom)[1:]
    return [
        part.partition('"')[0] for part in parts if "js-plotly-plot" in part.partition(">")[0] and "main-svg" in part
    ]


def part(dom: str, plot: str) -> str:
    """The document from one plot to the end of its section."""
    return dom.split(f'<div data-plot="{plot}"')[1].partition("</section")[0]


def test_every_plot_is_drawn_and_no_error_is_logged(page: Path, tmp_path: Path) -> None:
    dom = opened(page, tmp_path)
    assert root(dom)["data-errors"] == "0", root(dom).get("data-last-error")
    assert root(dom)["data-theme"] == "light"
    expected = ["accuracy", *(f"latency-{i}" for i in range(4)), "bytes-0", "bytes-1"]
    assert drawn(dom) == [*expected, "layers/parameters", "layers/MACs", "schedule"]
    accuracy = part(dom, "accuracy")
    assert len(re.findall(r'<g class="trace scatter', accuracy)) == 8
    assert len(re.findall(r'<path class="point"', accuracy)) == 8
    assert len(re.findall(r'<path class="yerror"', accuracy)) == 8
    schedule = part(dom, "schedule")
    assert len(re.findall(r'<path class="point"', schedule)) == 3 * 16
    assert accuracy.count("fill: rgb(0, 114, 178)") == 1  # the first record's colour on white
    tables = re.findall(r'<div data-layers-of="(\d)"( hidden="")?', dom)
    assert [index for index, hidden in tables if not hidden] == ["0"]
    assert len(tables) == 6


def test_the_dark_theme_reaches_the_plots_and_evil_names_run_nothing(tmp_path: Path) -> None:
    report = Report(EVIL, (EVIL, "<b>$x$</b>"), (fake_record(1, notes=(EVIL,)), fake_record(2)))
    page = to_html(report, tmp_path / "evil.html")
    dom = opened(page, tmp_path / "profile", "--blink-settings=preferredColorScheme=0")
    assert root(dom)["data-errors"] == "0", root(dom).get("data-last-error")
    assert root(dom)["data-theme"] == "dark"
    assert len(drawn(dom)) == 7
    accuracy = part(dom, "accuracy")
    assert accuracy.count("fill: rgb(90, 169, 230)") == 1
    assert accuracy.count("fill: rgb(0, 114, 178)") == 0
    assert dom.partition("<script type=")[0].count("<img") == 0


@pytest.mark.parametrize(("scheme", "window"), [(1, "1200,900"), (0, "400,800")])
def test_the_latency_page_is_drawn(tmp_path: Path, scheme: int, window: str) -> None:
    lines = [fake_line(EVIL), *many_layers(120), fake_line("slow", us=9.0)]
    speed = [fake_explanation(*lines), fake_race(), fake_explanation(title="other")]
    page = to_html(Report("Speed", (), ()), tmp_path / "speed.html", speed=speed)
    theme = f"--blink-settings=preferredColorScheme={scheme}"
    dom = opened(page, tmp_path / "profile", theme, f"--window-size={window}")
    assert root(dom)["data-errors"] == "0", root(dom).get("data-last-error")
    assert root(dom)["data-theme"] == ("light" if scheme else "dark")
    expected = ["race-0-0", "speed-layers-0-0", "roofline-0-0", "whole-1-0", "speed-layers-1-0", "roofline-1-0"]
    assert drawn(dom) == expected
    layers = part(dom, "speed-layers-0-0").partition('<div data-plot="roofline')[0]
    assert len(re.findall(r'<g class="point">', layers)) == 2 * 122
    points = part(dom, "roofline-0-0")
    assert len(re.findall(r'<path class="point"', points)) == 122
    assert len(re.findall(r'<path class="js-line"', points)) == 4


def test_an_error_in_the_page_is_seen(tmp_path: Path, page: Path) -> None:
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8")
    broken.write_text(text.replace('data-plot="accuracy"', 'data-plot="nothing"'), encoding="utf-8", newline="\n")
    foreign = "</main><script>document.title = 'owned'</script>"
    broken.write_text(broken.read_text(encoding="utf-8").replace("</main>", foreign), encoding="utf-8", newline="\n")
    with pytest.raises(AssertionError, match="CONSOLE"):
        opened(broken, tmp_path / "profile")
