"""Joules from a counter folder that the test writes, and the cost of training."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.measure import EnergyMeter, TrainingMeter, energy_per_call, find_counters

RANGE = 262_143_328_850


class Rapl:
    """``intel-rapl:0``, ``intel-rapl:1`` ... with their parts, as Linux lays them out."""

    def __init__(self, root: Path, names: tuple[str, ...] = ("package-0",), start: int = 1_000_000) -> None:
        self.folders = []
        for i, name in enumerate(names):
            self.folders.append(root / f"intel-rapl:{i}")
            for folder in (root / f"intel-rapl:{i}", root / f"intel-rapl:{i}:0"):
                folder.mkdir(parents=True)
                (folder / "name").write_text(f"{name if folder in self.folders else 'core'}\n")
                (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
                (folder / "energy_uj").write_text(f"{start}\n")

    def spend(self, package: int, microjoules: int) -> None:
        counter = self.folders[package] / "energy_uj"
        fresh = counter.with_name("fresh")
        fresh.write_text(f"{(int(counter.read_text()) + microjoules) % RANGE}\n")
        fresh.replace(counter)  # in one step, as the kernel's counters advance


def test_joules_of_one_package_without_its_parts(tmp_path: Path) -> None:
    rapl = Rapl(tmp_path)
    with EnergyMeter(tmp_path) as meter:
        rapl.spend(0, 2_500_000)
    assert (meter.joules, meter.reason, meter.source) == (2.5, None, "powercap package-0")


def test_two_packages_add_up_and_one_wraps_around(tmp_path: Path) -> None:
    rapl = Rapl(tmp_path, ("package-0", "package-1"), start=RANGE - 400_000)
    with EnergyMeter(tmp_path) as meter:
        rapl.spend(0, 100_000)
        rapl.spend(1, 1_000_000)
    assert meter.joules == pytest.approx(1.1)
    assert meter.source == "powercap package-0 + package-1"


def test_several_turns_are_seen_by_looking_in_between(tmp_path: Path) -> None:
    rapl = Rapl(tmp_path)
    with EnergyMeter(tmp_path, interval_s=0.005) as meter:
        for _ in range(3):
            before = meter._sum_uj
            rapl.spend(0, RANGE - 10)
            deadline = time.monotonic() + 5
            while meter._sum_uj == before and time.monotonic() < deadline:
                time.sleep(0.002)
    assert meter.joules == pytest.approx(3 * (RANGE - 10) / 1e6)


def test_the_platform_counter_contains_the_packages_and_is_left_out(tmp_path: Path) -> None:
    Rapl(tmp_path, ("package-0", "psys"))
    found = find_counters(tmp_path)
    assert not isinstance(found, str)
    assert [counter.name for counter in found] == ["package-0"]


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Rapl(tmp_path / "a")
    monkeypatch.setenv("SECATEUR_POWERCAP", str(tmp_path / "a"))
    assert not isinstance(find_counters(), str)
    monkeypatch.setenv("SECATEUR_POWERCAP", str(tmp_path / "none"))
    assert "has no intel-rapl package" in str(find_counters())


def test_what_cannot_be_read_gives_none_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rapl = Rapl(tmp_path, ("package-0", "package-1"))
    (rapl.folders[1] / "energy_uj").write_text("not a number")
    with EnergyMeter(tmp_path) as meter:
        rapl.spend(0, 5)
    assert meter.joules is None
    assert "cannot be read" in str(meter.reason)

    def denied(self: Path, *_: object) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", denied)  # as root one may read everything
    assert "administrator only" in str(find_counters(tmp_path))


def test_a_counter_that_vanishes_gives_no_joules(tmp_path: Path) -> None:
    rapl = Rapl(tmp_path)
    with EnergyMeter(tmp_path) as meter:
        rapl.spend(0, 10)
        (rapl.folders[0] / "energy_uj").unlink()
    assert meter.joules is None
    assert "became unreadable" in str(meter.reason)


def test_joules_per_call(tmp_path: Path) -> None:
    rapl = Rapl(tmp_path)

    class Burns(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 1:  # the first call only warms up
                rapl.spend(0, 30_000)
            return x

    found = energy_per_call(Burns(), torch.zeros(4, 1), least_s=0.02, root=tmp_path)
    assert not isinstance(found, str)
    assert (found.batch, found.joules) == (4, pytest.approx(0.03))
    assert found.calls > 1
    assert "intel-rapl" in str(energy_per_call(Burns(), torch.zeros(1), root=tmp_path / "none"))


def test_training_cost_has_seconds_and_joules(tmp_path: Path) -> None:
    rapl = Rapl(tmp_path)
    with TrainingMeter(tmp_path) as meter:
        with pytest.raises(ValueError, match="has ended"):
            _ = meter.cost
        end = time.process_time() + 0.1
        while time.process_time() < end:
            sum(range(1000))
        time.sleep(0.1)
        rapl.spend(0, 7_000_000)
    assert 0.06 <= meter.cost.core_s <= meter.cost.wall_s - 0.05  # the system counts in hundredths
    assert meter.cost.joules == 7.0
    assert meter.reason is None


def test_children_that_have_ended_are_in_the_core_seconds(tmp_path: Path) -> None:
    burn = "import time\nend = time.process_time() + .2\nwhile time.process_time() < end: pass"
    with TrainingMeter(tmp_path) as meter:
        subprocess.run([sys.executable, "-S", "-c", burn], check=True, env={})
    assert meter.cost.core_s >= 0.15  # the system counts in hundredths
    assert meter.cost.joules is None
    assert "no energy counter" in str(meter.reason)
