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
from secateur.benchmark.demo import demo_networks, run_demo
from secateur.records import Record, Report

VERDICTS = ("no gain here in time, because a masked dense tensor", "slower, for speed stay dense", "faster")
"""On time. Which one it is depends on the machine's mood: three rounds are few."""


def check_removal(record: Record) -> None:
    """Half of all channels are gone, and with them what the network costs, not only what its file takes."""
    assert record.shares.units == 0.5
    assert record.sparse.parameters == record.sparse.kept < 0.26 * record.dense.parameters
    assert record.shares.all_parameters == pytest.approx(1 - record.sparse.parameters / record.dense.parameters)
    assert record.shares.target_weights > 0.74
    assert record.sparse.macs == record.sparse.macs_kept < 0.28 * record.dense.macs
    assert record.sparse.sizes.plain_bytes < 0.28 * record.dense.sizes.plain_bytes
    at_256 = [row.batch for row in record.sparse.latency].index(256)
    assert record.measured_speedup[at_256] > 1.3  # about 2.9; the neighbours of this machine are loud


def test_the_demo_writes_loads_and_reports(tmp_path: Path):
    images = digits().first(192, 64)
    screen = io.StringIO()
    report = run_demo(images, tmp_path, epochs=1, rounds=3, console=Console(file=screen, width=160))
    networks = [(network, short) for network in demo_networks(images) for short in network.methods]
    assert list(report.names) == [f"{network.name}, {short}" for network, short in networks]
    assert [network.name for network, short in networks if short == "filters"] == ["ResNet"]
    for record, (_, short) in zip(report.records, networks, strict=True):
        if short == "filters":
            check_removal(record)
        else:
            assert record.shares.target_weights == pytest.approx(0.9, abs=1e-3)
            assert any(note.startswith(VERDICTS) for note in record.notes)
        assert record.sparse.sizes.file_bytes < 0.28 * record.dense.sizes.plain_bytes
        assert [row.batch for row in record.sparse.latency] == [1, 256]
        assert {row.split for row in record.sparse.accuracy} == {"train", "test"}
    assert Report.from_record(json.loads((tmp_path / "report.json").read_text())) == report
    assert "plotly" in (tmp_path / "report.html").read_text().lower()
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == len(report.names)
    for network, short in networks:
        net = sc.load(tmp_path / f"{network.name}-{short}.safetensors".lower(), into=network.make)
        masks = sc.find_masks(net)
        assert (masks is None) == (short == "filters")
        assert masks is None or masks.shares().target_weights == pytest.approx(0.9, abs=1e-3)
        assert torch.isfinite(net.eval()(images.x_test)).all()
    shown = screen.getvalue()
    assert shown.count("loaded back: outputs equal, bit for bit") == 2
    assert any(verdict in shown for verdict in VERDICTS)
