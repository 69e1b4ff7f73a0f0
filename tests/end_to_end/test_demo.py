"""The demo on a handful of images: everything it promises is really there afterwards."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

import secateur as sc
from secateur.benchmark.data import digits
from secateur.benchmark.demo import DEMO_METHODS, demo_networks, run_demo
from secateur.records import Report

VERDICTS = ("no gain here in time, because a masked dense tensor", "slower, for speed stay dense", "faster")
"""On time. Which one it is depends on the machine's mood: three rounds are few."""


def test_the_demo_writes_loads_and_reports(tmp_path: Path):
    images = digits().first(192, 64)
    screen = io.StringIO()
    report = run_demo(images, tmp_path, epochs=1, rounds=3, console=Console(file=screen, width=160))
    names = [network.name for network in demo_networks(images)]
    assert list(report.names) == [f"{net}, {method}" for net in names for method in DEMO_METHODS]
    for record in report.records:
        assert record.shares.target_weights == pytest.approx(0.9, abs=1e-3)
        assert record.sparse.sizes.file_bytes < 0.25 * record.dense.sizes.plain_bytes
        assert [row.batch for row in record.sparse.latency] == [1, 256]
        assert {row.split for row in record.sparse.accuracy} == {"train", "test"}
        assert any(note.startswith(VERDICTS) for note in record.notes)
    assert Report.from_record(json.loads((tmp_path / "report.json").read_text())) == report
    assert "plotly" in (tmp_path / "report.html").read_text().lower()
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == len(report.names)
    for file, network in zip(files, [n for n in demo_networks(images) for _ in DEMO_METHODS], strict=True):
        net = sc.load(file, into=network.make)
        masks = sc.find_masks(net)
        assert masks is not None
        assert masks.shares().target_weights == pytest.approx(0.9, abs=1e-3)
        assert torch.isfinite(net.eval()(images.x_test)).all()
    shown = screen.getvalue()
    assert "loaded back: outputs equal, bit for bit" in shown
    assert any(verdict in shown for verdict in VERDICTS)
