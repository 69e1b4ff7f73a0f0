"""A process that is asked and does not answer: it must never hold the others up."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from secateur.measure.rivals.process import Lost, Process

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


def start(code: str, folder: Path) -> Process:
    return Process([sys.executable, "-c", code], os.environ, folder / "log")


def lost(code: str, folder: Path, deadline: float = 60.0) -> Lost:
    """What asking this program comes to."""
    process = start(code, folder)
    with pytest.raises(Lost) as caught:
        process.ask({"turn": 1}, deadline)
    return caught.value


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_answers_come_in_order(tmp_path: Path) -> None:
    process = start(ECHO, tmp_path)
    assert [process.ask({"n": n}, 60.0) for n in range(50)] == [{"n": n} for n in range(50)]
    process.stop()
    process.stop()  # a second time does nothing


def test_one_that_hangs_is_ended(tmp_path: Path) -> None:
    code = f"import os, sys, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    process = start(code, tmp_path)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    with pytest.raises(Lost, match=r"did not answer within 0.05 s"):
        process.ask(None, 0.05)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_one_that_fails_says_why(tmp_path: Path) -> None:
    found = lost("import sys; print('y' * 5000, file=sys.stderr); raise OSError('no such kernel')", tmp_path)
    assert found.why == "ended with code 1: OSError: no such kernel"
    assert found.stderr.endswith("OSError: no such kernel")
    assert len(found.stderr) <= 2000


def test_one_that_talks_nonsense_is_ended(tmp_path: Path) -> None:
    assert lost("print('hello', flush=True); import time; time.sleep(600)", tmp_path).why == (
        "wrote b'hello\\n' where an answer belongs"
    )


def test_one_that_is_killed_says_by_what(tmp_path: Path) -> None:
    found = lost("import os; os.write(2, b'last words'); os.kill(os.getpid(), 11)", tmp_path)
    assert (found.why, found.stderr) == ("was ended by SIGSEGV", "last words")


def test_one_that_goes_silently_is_lost_too(tmp_path: Path) -> None:
    assert lost("import sys; sys.exit(0)", tmp_path).why == "ended with code 0"


def test_one_that_stopped_reading_is_lost_too(tmp_path: Path) -> None:
    process = start("print('{}', flush=True)", tmp_path)
    assert process.ask(None, 60.0) == {}
    with pytest.raises(Lost):
        process.ask(None, 60.0)


def test_what_it_started_goes_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, json\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(json.dumps({'pid': child.pid}), flush=True)\n"
        "sys.stdin.read()"
    )
    process = start(code, tmp_path)
    pid = process.ask(None, 60.0)["pid"]
    assert alive(pid)
    process.stop()
    for _ in range(500):  # whoever adopted it has to collect it
        if not alive(pid):
            break
        time.sleep(0.01)
    assert not alive(pid)
