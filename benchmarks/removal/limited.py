"""One piece of a benchmark in a process of its own, with a time limit and its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Outcome", "peak_bytes", "run_module", "say"]

ROOT = Path(__file__).resolve().parents[2]
_MARK = "RECORD "
_POLL_S = 0.02


@dataclass(frozen=True)
class Outcome:
    """What became of the process.

    Attributes:
        status: ``"done"``, ``"timeout"``, or ``"error"``: it ended otherwise than with exit code 0.
        record: the last thing it said; None if it said nothing.
        error: the end of what it wrote to standard error.
        seconds: of wall clock, the start of Python and imports included.
        peak: largest resident memory in bytes, also of a process that was stopped.
    """

    status: str
    record: dict[str, Any] | None
    error: str
    seconds: float
    peak: int


def say(record: dict[str, Any]) -> None:
    """Called in the process: the record to hand back. The last one counts; earlier ones say how far it came."""
    print(_MARK + json.dumps(record), flush=True)


def peak_bytes() -> int:
    """Largest resident memory of this process so far (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError("this system does not say the peak memory of a process; run the benchmark on Linux")


def run_module(module: str, *arguments: str, limit_s: float) -> Outcome:
    """``python -m module arguments`` on one thread, stopped after ``limit_s``."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=os.environ | threads,
            stdout=out,
            stderr=errors,
        )
        status, code, peak = "done", None, 0
        while code is None:
            found, exit_status, usage = os.wait4(process.pid, os.WNOHANG)
            seconds = time.perf_counter() - start
            if found:
                code, peak = os.waitstatus_to_exitcode(exit_status), usage.ru_maxrss * 1024
                process.returncode = code
            elif status == "done" and seconds > limit_s:
                status = "timeout"
                process.kill()
            else:
                time.sleep(_POLL_S)
        out.seek(0)
        errors.seek(0)
        said = [line[len(_MARK) :] for line in out.read().splitlines() if line.startswith(_MARK)]
        status = "error" if status == "done" and code else status
        return Outcome(status, json.loads(said[-1]) if said else None, errors.read()[-1500:], seconds, peak)
