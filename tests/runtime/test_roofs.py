"""The roofs: loops that compute what they say, sizes of caches as the system tells them, records without nonsense."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from secateur.native.loading import core
from secateur.records import Bandwidth, Roofs
from secateur.runtime import roofs as measuring
from secateur.runtime.roofs import cache_sizes, measure_roofs
from tests.native.oracle import instruction_sets, needs_core

SECOND, LAST = Bandwidth("second cache", 1000, 500, 100.0), Bandwidth("last cache", 9000, 2000, 50.0)
MEMORY = Bandwidth("memory", None, 30000, 10.0)
ROOFS = Roofs("avx2", 200.0, 400.0, (SECOND, LAST, MEMORY))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_SECONDS", dict.fromkeys(("peak", *measuring._SECONDS), 1e-4))
    measure_roofs.cache_clear()


@needs_core
@pytest.mark.parametrize("isa", instruction_sets())
def test_every_instruction_set_measures_rates(isa: str) -> None:
    table = core.table(isa)
    for pairs in (False, True):
        assert 1e7 < core.roof_fma(table, pairs, 1e-4) < 1e14  # operations per second, not per millisecond
    for size in (1024, 1500, 300_000):
        assert 1e7 < core.roof_read(table, size, 1e-4) < 1e14


@needs_core
def test_the_core_refuses_what_it_cannot_measure() -> None:
    for seconds in (0.0, -1.0, math.nan, 11.0):
        with pytest.raises(ValueError, match="more than 0 and at most 10"):
            core.roof_fma(core.active, False, seconds)
        with pytest.raises(ValueError, match="more than 0 and at most 10"):
            core.roof_read(core.active, 4096, seconds)
    for size in (0, 1023, (1 << 32) + 1):
        with pytest.raises(ValueError, match="1024 to 2"):
            core.roof_read(core.active, size, 1e-4)


@needs_core
def test_the_record_has_levels_from_near_to_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "cache_sizes", lambda: {1: 32 << 10, 2: 1 << 20, 3: 16 << 20})
    found = measure_roofs()
    assert found is measure_roofs()  # once in a process
    assert [band.level for band in found.bandwidths] == ["second cache", "last cache", "memory"]
    assert [band.holds for band in found.bandwidths] == [1 << 20, 16 << 20, None]
    assert [band.array for band in found.bandwidths] == [1 << 19, 4 << 20, 64 << 20]
    numbers = [found.gflops, found.gflops_bf16, *(band.gbps for band in found.bandwidths)]
    assert all(0.01 < number < 1e5 for number in numbers)  # 10^9 per second, and no NaN
    assert found.isa == core.active.isa
    assert Roofs.from_record(found.to_record()) == found


@needs_core
@pytest.mark.parametrize(
    ("sizes", "levels"),
    [
        ({}, ["second cache", "memory"]),
        ({2: 1 << 20}, ["second cache", "memory"]),
        ({2: 1 << 20, 3: 4 << 20}, ["second cache", "memory"]),  # a quarter of the last one fits into the second
    ],
)
def test_caches_that_are_not_told_or_too_alike(
    sizes: dict[int, int], levels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "cache_sizes", lambda: sizes)
    assert [band.level for band in measure_roofs().bandwidths] == levels


def test_without_the_core_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "core", None)
    with pytest.raises(ValueError, match="core, which is absent"):
        measure_roofs()


def test_cache_sizes_are_read_as_linux_tells_them(tmp_path: Path) -> None:
    rows = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M"), ("3", "Unified", "36864K")]
    for number, row in enumerate(rows):
        folder = tmp_path / "cpu0" / "cache" / f"index{number}"
        folder.mkdir(parents=True)
        for name, text in zip(("level", "type", "size"), row, strict=True):
            (folder / name).write_text(text + "\n")
    (tmp_path / "cpu0" / "cache" / "index4").mkdir()  # tells nothing
    assert cache_sizes(tmp_path) == {1: 48 << 10, 2: 2 << 20, 3: 36864 << 10}
    assert all(size > 0 for size in cache_sizes(tmp_path / "nowhere").values())


def test_the_roof_is_the_lower_of_peak_and_bandwidth() -> None:
    assert ROOFS.at(1.0, 800) == 100.0  # in the second cache
    assert ROOFS.at(1.0, 1001) == 50.0
    assert ROOFS.at(1.0, 9001) == 10.0
    assert ROOFS.at(3.0, 800) == 200.0
    assert ROOFS.at(3.0, 800, bf16=True) == 300.0
    assert ROOFS.level_of(9000) is LAST
    steps = [ROOFS.at(2.0**k, size) for size in (800, 5000, 10**6) for k in range(-8, 12)]
    for one in (steps[:20], steps[20:40], steps[40:]):
        assert one == sorted(one)  # more operations per byte never lower the roof
    assert all(near >= far for near, far in zip(steps[:40], steps[20:], strict=True))


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROOFS.gflops = 1.0  # type: ignore[misc]
