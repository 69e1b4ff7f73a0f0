"""The thread pool from Python: every piece once, whoever calls, and how many threads there are."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from secateur.native import threads
from secateur.native.loading import core
from secateur.native.threads import usable_threads
from tests.native.oracle import needs_core

pytestmark = needs_core
MOUNTS = {
    "v2": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    "v1": "30 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "31 23 0:28 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n",
    "container": "31 23 0:28 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
}


@pytest.fixture(autouse=True)
def insist():
    """However busy this machine is, workers are asked; without this the pool would soon work alone."""
    core.pool_insist(True)
    yield
    core.pool_insist(False)


@pytest.mark.parametrize("backend", ["own", "gomp"])
@pytest.mark.parametrize("program_us", [-1.0, 50.0, 1e4])
@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_every_piece_runs_once(threads: int, program_us: float, backend: str) -> None:
    for pieces in (0, 1, 2, 3, 17, 1000):
        times, wrong, helped = core.pool_probe(
            regions=20,
            pieces=pieces,
            threads=threads,
            work_us=1000.0,
            program_us=program_us,
            backend=backend,
            programs=3,
        )
        assert wrong == 0
        assert len(times) == 3
        assert min(times) >= 0
        assert helped == 0 or threads > 1


def helped(**changes: float | str) -> int:
    """Pieces that workers ran, of a program long enough to have some."""
    told = {
        "regions": 5,
        "pieces": 40,
        "threads": 2,
        "piece_us": 20.0,
        "work_us": 800.0,
        "program_us": 4000.0,
    } | changes
    return core.pool_probe(**told)[2]


@pytest.mark.parametrize("backend", ["own", "gomp"])
def test_workers_take_part(backend: str) -> None:
    assert any(helped(backend=backend) > 0 for _ in range(500))


def test_one_thread_is_the_caller() -> None:
    assert helped(threads=1) == 0


def test_callers_of_several_threads_share_the_pool() -> None:
    def call(pieces: int) -> int:
        return core.pool_probe(regions=200, pieces=pieces, threads=3, piece_us=0.2, work_us=1000.0, program_us=1e4)[1]

    with ThreadPoolExecutor(4) as callers:
        assert list(callers.map(call, [1, 2, 7, 64, 65, 300, 3, 5])) == [0] * 8


def test_torch_lends_its_threads_where_it_has_gomp() -> None:
    maps = Path("/proc/self/maps")
    loaded = maps.exists() and "libgomp" in maps.read_text(encoding="utf-8")
    assert core.pool_backend("gomp") == ("gomp" if loaded else "own")
    assert core.pool_backend("own") == "own"


def test_an_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match="'tbb' is not known; allowed are 'own' and 'gomp'"):
        core.pool_probe(regions=1, pieces=1, threads=1, backend="tbb")
    with pytest.raises(ValueError, match="pieces: at most 1000000"):
        core.pool_probe(regions=1, pieces=10**9, threads=1)


def machine(root: Path, mounts: str, group: str, files: dict[str, str]) -> str:
    """What `quota_threads` reads, in a folder."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(MOUNTS[mounts], encoding="utf-8")
    (root / "proc/self/cgroup").write_text(group, encoding="utf-8")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return str(root)


@pytest.mark.skipif(not Path("/proc").exists(), reason="control groups are Linux's")
@pytest.mark.parametrize(
    ("mounts", "group", "files", "wanted"),
    [
        ("v2", "0::/\n", {}, 0),
        ("v2", "0::/a\n", {"a/cpu.max": "max 100000\n"}, 0),
        ("v2", "0::/a\n", {"a/cpu.max": "200000 100000\n"}, 2),
        ("v2", "0::/a\n", {"a/cpu.max": "210000 100000\n"}, 3),
        ("v2", "0::/a\n", {"a/cpu.max": "10000 100000\n"}, 1),
        ("v2", "0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "700000 100000\n"}, 3),
        ("v2", "0::/a/b\n", {"a/cpu.max": "900000 100000\n", "a/b/cpu.max": "700000 100000\n"}, 7),
        ("v2", "0::/../hidden\n", {"cpu.max": "400000 100000\n"}, 4),
        ("v2", "0::/other\n", {"a/cpu.max": "100000 100000\n"}, 0),
        ("container", "0::/docker/1\n", {"cpu.max": "150000 100000\n"}, 2),
        ("container", "0::/docker/12\n", {"cpu.max": "500000 100000\n", "2/cpu.max": "100000 100000\n"}, 5),
        ("container", "0::/docker/1/x\n", {"x/cpu.max": "100000 100000\n"}, 1),
        (
            "v1",
            "4:memory:/a\n3:cpu,cpuacct:/b\n",
            {"cpu/b/cpu.cfs_quota_us": "-1\n", "cpu/b/cpu.cfs_period_us": "100000\n"},
            0,
        ),
        (
            "v1",
            "4:memory:/a\n3:cpu,cpuacct:/b\n",
            {"cpu/b/cpu.cfs_quota_us": "450000", "cpu/b/cpu.cfs_period_us": "100000"},
            5,
        ),
        (
            "v1",
            "4:memory:/a\n3:cpu,cpuacct:/b\n",
            {"cpu/a/cpu.cfs_quota_us": "450000", "cpu/a/cpu.cfs_period_us": "100000"},
            0,
        ),
        ("v1", "broken\n", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "50000"}, 3),
    ],
)
def test_the_quota_of_control_groups(
    tmp_path: Path, mounts: str, group: str, files: dict[str, str], wanted: int
) -> None:
    assert core.quota_threads(machine(tmp_path, mounts, group, files)) == wanted


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert core.quota_threads(str(tmp_path)) == 0


def test_usable_threads_are_the_least_of_all_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    quota = core.quota_threads() or 1024
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert core.usable_threads() == min(quota, allowed)
    for limit in (1, 2, 1000):
        monkeypatch.setattr(torch, "get_num_threads", lambda limit=limit: limit)
        assert usable_threads() == min(limit, quota, allowed)
    monkeypatch.setattr(threads, "core", None)
    assert usable_threads() == 1000
