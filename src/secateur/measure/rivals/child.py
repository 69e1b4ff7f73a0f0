"""The process of one runtime: builds its call, then takes turns when it is told to.

    python -m secateur.measure.rivals.child JOB.json

JSON lines: commands come on standard input, answers go to what was standard output; whatever a runtime or a model
prints goes to standard error. An exception ends the process with its traceback there. The end of the input ends it too,
so that no process outlives the one that started it.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import runpy
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from secateur.measure.rivals.builders import Call
from secateur.measure.rivals.case import Case, leaves

__all__ = ["main", "settle", "turn"]

_BLOCK_S = 0.002
"""A block of calls lasts at least this long: short ones would measure the clock."""
_WARM_S = 0.01
_SETTLE_S, _REST_S, _IDLE = 0.5, 0.005, 0.2
_LONG_S = 0.2
"""A call of this length needs no warming: what others left in the caches is gone after its first millisecond."""


def main() -> None:
    """Read the job, build, answer; then serve until the input ends."""
    say = _answers()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if job["main"] is not None:
        _take_main(job["main"])
    torch.set_num_threads(job["threads"])
    torch.set_num_interop_threads(1)
    call = _find(job["build"])(Case(Path(job["folder"]), job["threads"]))
    outputs = Path(job["outputs"])
    with torch.inference_mode():
        _write(call(), outputs)
        call_s = min(_block(call, 1) for _ in range(3))
        settle()
        say({"ready": call_s})
        gc.collect()
        gc.freeze()
        gc.disable()
        for line in sys.stdin:
            wanted = json.loads(line)
            if "turn" in wanted:
                median, least = turn(call, wanted["turn"], call_s)
                say({"ms": 1e3 * median, "least": 1e3 * least, "settled": settle()})
            else:
                _write(call(), outputs)
                say({"written": True})


def turn(call: Call, seconds: float, call_s: float) -> tuple[float, float]:
    """Calls for so many seconds, in blocks: seconds per call, (median, least) of the blocks.

    The first calls are not counted, since another process has had the caches meanwhile.

    Args:
        call: runs one inference.
        seconds: how long the turn is; one block at least.
        call_s: about how long one call takes.

    Returns:
        Seconds per call.

    Example:
        >>> median, least = turn(lambda: time.sleep(0.001), 0.02, 0.001)
        >>> 0.001 <= least <= median
        True
    """
    start = time.perf_counter()
    while call_s < _LONG_S:
        call()
        if time.perf_counter() - start >= _WARM_S:
            break
    repeats = max(1, math.ceil(_BLOCK_S / max(call_s, 1e-7)))
    blocks: list[float] = []
    start = time.perf_counter()
    while not blocks or time.perf_counter() - start < seconds:
        blocks.append(_block(call, repeats))
    return statistics.median(blocks), min(blocks)


def settle() -> bool:
    """Wait until this process is idle: workers of some runtimes spin for 40 ms and more, and slow whoever is next.

    Returns:
        Whether it came to rest; False after half a second of spinning.

    Example:
        >>> settle()
        True
    """
    start = time.perf_counter()
    while time.perf_counter() - start < _SETTLE_S:
        ran = time.process_time()
        time.sleep(_REST_S)
        if time.process_time() - ran < _IDLE * _REST_S:
            return True
    return False


def _block(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _answers() -> Callable[[dict[str, Any]], None]:
    """Keep standard output for the answers; what others print to it joins standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    return say


def _take_main(script: str) -> None:
    """Load the script that was run, guarded by its ``if __name__``, for the classes that the model has from it."""
    main = types.ModuleType("__mp_main__")
    sys.modules["__mp_main__"] = main
    main.__dict__.update(runpy.run_path(script, run_name="__mp_main__"))
    sys.modules["__main__"] = main


def _find(name: str) -> Callable[[Case], Call]:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _write(outputs: Any, path: Path) -> None:
    """The outputs of the last call, for the parent to check."""
    torch.save([torch.as_tensor(leaf).clone() for leaf in leaves(outputs)], path)


if __name__ == "__main__":
    main()
