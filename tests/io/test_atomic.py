from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.io import Bundle, read, write
from secateur.io.atomic import replacing

SIZE = 200_000

# One helper imports torch once and forks a writer per line; each writer replaces the file until it is killed.
WRITERS = """
import os, sys
import torch
from secateur.io import Bundle, write
torch.set_num_threads(1)
bundles = [Bundle({"w": torch.full((int(sys.argv[2]),), float(k))}, record={"k": k}) for k in range(4)]
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    k = 0
    while pid == 0:
        write(sys.argv[1], bundles[k % 4])
        k += 1
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("dead", flush=True)
"""


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def version_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path, Bundle({"w": torch.full((SIZE,), 0.0)}, record={"k": 0}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    chance = random.Random(5)
    seen, littered = set(), 0
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WRITERS, str(path), str(SIZE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as helper:
        assert helper.stdin is not None
        assert helper.stdout is not None
        assert helper.stdout.readline() == "ready\n"
        for _ in range(20):
            helper.stdin.write("go\n")
            helper.stdin.flush()
            started, before = time.monotonic(), version_of(path)
            writer = int(helper.stdout.readline())
            while version_of(path) == before and time.monotonic() < started + 60:
                time.sleep(0.0005)
            # one write has taken this long on this machine, under its load of now: strike within the next one
            time.sleep(chance.uniform(0.0, 1.2) * (time.monotonic() - started))
            os.kill(writer, signal.SIGKILL)
            assert helper.stdout.readline() == "dead\n"
            bundle = read(path)
            assert bundle.record is not None
            assert bundle.tensors["w"].unique().tolist() == [bundle.record["k"]]
            seen.add(bundle.record["k"])
            # the next writer clears its predecessor's litter, so it never grows
            assert len(leftovers(tmp_path)) <= 1
            littered += len(leftovers(tmp_path))
    assert littered > 0, "no kill fell into a write: the test has shown nothing"
    assert len(seen) > 1
    write(path, Bundle({"w": torch.ones(3)}))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt(), MemoryError()])
def test_a_fault_between_write_and_replace_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "f"
    write(path, Bundle({"w": torch.ones(3)}))
    before = path.read_bytes()
    written: list[int] = []

    def fail(self: Path, target: Any) -> None:
        written.append(self.stat().st_size)
        raise error

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(error)):
        write(path, Bundle({"w": torch.zeros(30)}))
    monkeypatch.undo()
    assert written[0] > 120
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_data_and_folder_reach_the_disk_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        events.append(
            "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else f"file {os.fstat(descriptor).st_size}"
        )
        fsync(descriptor)

    def note_replace(self: Path, target: Any) -> Path:
        events.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    size = write(tmp_path / "f", Bundle({"w": torch.ones(3)}))
    assert events == [f"file {size}", "replace", "folder"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    old = os.umask(umask)
    try:
        write(tmp_path / "f", Bundle({}))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_a_replaced_file_keeps_its_mode_even_while_it_is_written(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(mode)
    with replacing(path) as file:
        (temporary,) = leftovers(tmp_path)
        assert stat.S_IMODE(temporary.stat().st_mode) == mode
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode)


def test_the_successor_of_a_private_file_is_private_from_its_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o600)
    first: list[int] = []
    monkeypatch.setattr(Path, "chmod", lambda self, mode: first.append(stat.S_IMODE(self.stat().st_mode)))
    write(tmp_path / "f", Bundle({}))
    assert first == [0o600]


def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep" / "real", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write(link, Bundle({"w": torch.ones(3)}))
    assert link.is_symlink()
    assert read(target).tensors["w"].tolist() == [1, 1, 1]
    assert leftovers(tmp_path / "deep") == []


def test_only_dead_writers_of_the_same_file_are_cleaned_up(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with replacing(path) as file:
        (mine,) = leftovers(tmp_path)
        file.write(b"1")
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    prefix = mine.name.rpartition("-")[0].rpartition("-")[0]
    dead = tmp_path / f"{prefix}-{gone.stdout.strip()}-00000000.tmp"
    alive = tmp_path / f"{prefix}-{os.getpid()}-00000000.tmp"
    other = tmp_path / f"{prefix.replace('secateur-', 'secateur-0')}-{gone.stdout.strip()}-00000000.tmp"
    for file_left in (dead, alive, other):
        file_left.write_bytes(b"part")
    with replacing(path) as file:
        file.write(b"2")
    assert sorted(tmp_path.iterdir()) == sorted([path, alive, other])


def test_the_longest_file_names_work(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write(path, Bundle({}))
    assert read(path).tensors == {}


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the folder .*none does not exist; create it first"):
        write(tmp_path / "none" / "f", Bundle({}))
    with pytest.raises(ValueError, match="is a folder; give the name of a file in it"):
        write(tmp_path, Bundle({}))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="device or a pipe"):
        write(tmp_path / "pipe", Bundle({}))
