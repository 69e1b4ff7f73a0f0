"""The table and the summary say what the record says, at every width."""

from __future__ import annotations

import dataclasses
import io
import math
import re

import pytest
from rich.console import Console

from secateur.records import Accuracy, Latency, Report, Sizes
from secateur.report import headline, print_table, table, text_summary
from secateur.report.columns import cell_groups, notes
from tests.report.fake import NO_GAIN, fake_record, fake_report


def printed(subject: object, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    print_table(subject, console=console)  # type: ignore[arg-type]
    return console.export_text()


def small(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("width", [80, 100, 160, 240])
def test_no_line_is_too_long_and_no_number_is_broken(width: int) -> None:
    report = fake_report()
    text = printed(report, width)
    assert max(map(len, text.splitlines())) <= width
    for group in cell_groups(report):
        for column in group.columns:
            for cell in column.cells:
                assert cell in text, (column.heading, cell)


@pytest.mark.parametrize(("width", "tables"), [(100, 4), (160, 2), (240, 1)])
def test_it_is_split_only_as_far_as_the_window_asks(width: int, tables: int) -> None:
    assert printed(fake_report(), width).count("─ ") + printed(fake_report(), width).count("─\n") == tables


def test_every_record_has_one_line_in_each_table() -> None:
    report = fake_report()
    lines = printed(report, 160).splitlines()
    for name in report.names:
        assert len([line for line in lines if line.strip().startswith(name + " ")]) >= 2


def test_the_row_of_a_record_by_hand() -> None:
    dense = fake_record(1).dense
    sparse = dataclasses.replace(
        fake_record(1).sparse,
        accuracy=(Accuracy("test", 400, 0.9025, math.sqrt(0.9025 * 0.0975 / 400), 0.3, 0.02),),
        sizes=Sizes(1_000_000, 250_400, 123_456),
        macs_kept=41_700,
        latency=(Latency(1, 2, 0.2, 0.19, 0.213, 9),),
    )
    dense = dataclasses.replace(
        dense,
        accuracy=(Accuracy("test", 400, 0.95, math.sqrt(0.95 * 0.05 / 400), 0.2, 0.01),),
        sizes=Sizes(1_000_000, 900_000, 999_000),
        macs=417_000,
        latency=(Latency(1, 2, 0.25, 0.24, 0.26, 9),),
    )
    record = fake_record(
        1, dense=dense, sparse=sparse, theoretical_speedup=10.0, measured_speedup=(1.25,), dense_self_ratio=(0.96,)
    )
    line = next(line for line in printed(record, 240).splitlines() if "95.0 ±" in line)
    cells = "95.0 ± 1.1 → 90.2 ± 1.5 90.0 90.0 89.1 1.00 MB → 123 kB 250 kB 9.16 / 9.44 417 k → 41.7 k 10.0"
    assert small(line).strip().endswith(cells + " 0.250 → 0.200 [0.190 0.213] 1.25 [0.96 1.04]")


def test_a_record_that_was_not_timed_or_tested_shows_dashes() -> None:
    bare = fake_record(0)
    bare = dataclasses.replace(
        bare,
        dense=dataclasses.replace(bare.dense, latency=(), accuracy=()),
        sparse=dataclasses.replace(bare.sparse, latency=(), accuracy=()),
        measured_speedup=(),
        dense_self_ratio=(),
        effective_compression=None,
    )
    report = Report("two", ("bare", "full"), (bare, fake_record(1)))
    line = next(line for line in printed(report, 240).splitlines() if line.strip().startswith("bare"))
    assert line.count("–") == 6  # accuracy, effective compression, two batches of latency and speed-up
    assert "–" not in next(x for x in printed(report, 240).splitlines() if x.strip().startswith("full"))
    assert "No latency was measured." in headline(bare)
    assert "No accuracy was measured." in headline(bare)


def test_why_there_is_no_gain_stands_below_once() -> None:
    report = fake_report()
    verdict = NO_GAIN.partition(": ")[0]
    assert small(printed(report, 160)).count(verdict) == 1
    assert notes(report) == [(report.names[:5], NO_GAIN)]
    everyone = Report("all", ("a", "b"), (fake_record(0), fake_record(1)))
    assert f"all: {verdict}" in small(printed(everyone, 160))
    assert f"{NO_GAIN}" in small(printed(fake_record(0), 160)), "one record alone is told the whole note"


def test_markup_in_names_is_text() -> None:
    report = Report("[bold]t[/bold]", ("[red]a[/red]",), (fake_record(0),))
    text = printed(report, 160)
    assert "[bold]t[/bold]" in text
    rows = [line for line in text.splitlines() if line.strip().startswith("[red]a[/red] ")]
    assert len(rows) == 2


def test_text_summary_has_the_figures() -> None:
    text = small(text_summary(fake_record(1)))
    record = fake_record(1)
    assert str(record) == text_summary(record)
    assert text.startswith(record.sparse.name)
    for part in (
        "97.8 ± .8 → 97.5 ± .8 % (test, 360 samples)",
        "90.0 % of units, 90.0 % of target weights, 89.1 % of all parameters",
        "248 kB → 33.9 kB, 7.30 × smaller (plain checkpoint gzipped: 54.3 kB)",
        "9.16 × direct, 9.44 × effective",
        "4.94 × in theory (multiply-adds of convolutions and linear layers, no bias)",
        "measured 1.01 × (dense against itself 0.98 to 1.02)",
        NO_GAIN,
    ):
        assert part in text, part
    both = text_summary(Report("two", ("a", "b"), (fake_record(0), fake_record(5))))
    assert [line for line in both.splitlines() if not line.startswith(" ")] == ["a", "b"]
    assert both.count(f"a: {NO_GAIN}") == 1


def test_a_file_that_is_not_smaller_says_so() -> None:
    record = fake_record(1)
    larger = dataclasses.replace(record.sparse, sizes=Sizes(248_000, 200_000, record.dense.sizes.plain_bytes))
    assert "its file is not smaller" in headline(dataclasses.replace(record, sparse=larger))


def test_the_headline_chooses_by_the_standard_error() -> None:
    # one-shot loses 3.6 points and is the smaller file; it must not be praised for it
    lossy = dataclasses.replace(
        fake_record(0), sparse=dataclasses.replace(fake_record(0).sparse, sizes=Sizes(248_000, 9_000, 8_000))
    )
    text = headline(Report("two", ("lossy", "fine"), (lossy, fake_record(1))))
    assert text.startswith("fine loses no measurable accuracy (97.8 ± .8 → 97.5 ± .8 %); its file is 7.30 × smaller")
    named = Report("two", ("lossy", "fine"), (lossy, fake_record(1)), chosen="lossy")
    assert headline(named).startswith("lossy loses 3.6 points of accuracy"), (
        "what was chosen before, not the best by these"
    )
    assert "fine" not in headline(named)
    with pytest.raises(ValueError, match="chosen='other' is none of its names"):
        headline(Report("two", ("lossy",), (lossy,), chosen="other"))
    old = {key: value for key, value in named.to_record().items() if key != "chosen"}
    assert Report.from_record(old).chosen is None, "written before there was such a key"
    assert headline(lossy).startswith("lenet magnitude one-shot 90 % loses 3.6 points of accuracy (97.8")


def test_the_headline_calls_no_noise_a_gain() -> None:
    near = fake_record(1, measured_speedup=(1.015, 0.999), dense_self_ratio=(1.02, 1.0))
    assert "for speed, stay dense" in headline(near)
    slower_self = fake_record(1, measured_speedup=(1.015, 0.999), dense_self_ratio=(0.97, 1.0))
    assert "for speed, stay dense" in headline(slower_self)
    real = fake_record(1, measured_speedup=(1.05, 0.999), dense_self_ratio=(1.02, 1.0))
    assert "Fastest: lenet magnitude gradual 90 %, measured 1.05 × at batch 1" in headline(real)


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        (Report("t", (), ()), "no records"),
        (Report("t", ("a",), ()), "no records"),
        (Report("t", ("a",), (fake_record(0), fake_record(1))), "1 names for 2 records"),
        (Report("t", ("a", "a"), (fake_record(0), fake_record(1))), r"names \['a'\] occur twice"),
        (fake_record(0, measured_speedup=(1.0,)), "do not line up"),
        ("report.json", "not str"),
    ],
)
def test_what_cannot_be_shown_is_refused(subject: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        table(subject)  # type: ignore[arg-type]
