"""Joules, read from the energy counters that Linux offers under ``/sys/class/powercap``.

The counters are those of whole processor packages (RAPL): everything that runs on the machine is in
them, memory is not. They count microjoules and start again at their range.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from secateur.measure.latency import batch_of, threads_set
from secateur.measure.quiet import quiet
from secateur.records import Energy

__all__ = ["EnergyMeter", "energy_per_call", "find_counters"]

_ROOT = "/sys/class/powercap"
_PACKAGE = re.compile(r"intel-rapl:\d+")  # not intel-rapl:0:1: parts of a package are in its sum already


@dataclass(frozen=True)
class _Counter:
    name: str
    path: Path
    range_uj: int

    def read(self) -> int:
        return int(self.path.read_text())


def find_counters(root: str | Path | None = None) -> tuple[_Counter, ...] | str:
    """The package counters that can be read, or the reason why none can.

    Args:
        root: the folder to look in; default: ``$SECATEUR_POWERCAP``, else ``/sys/class/powercap``.

    Returns:
        One counter per package; or a sentence. If one of several packages cannot be read, none is used:
        half a machine's energy is no energy.

    Example:
        >>> find_counters("/nowhere")
        'no energy counter: /nowhere has no intel-rapl package'
    """
    folder = Path(os.environ.get("SECATEUR_POWERCAP", _ROOT) if root is None else root)
    packages = sorted(p for p in folder.glob("intel-rapl:*") if _PACKAGE.fullmatch(p.name))
    if not packages:
        return f"no energy counter: {folder} has no intel-rapl package"
    try:
        found = [
            _Counter(
                (p / "name").read_text().strip() if (p / "name").exists() else p.name,
                p / "energy_uj",
                int((p / "max_energy_range_uj").read_text()),
            )
            for p in packages
        ]
        for counter in found:
            counter.read()
    except PermissionError as error:
        return f"energy counters are there, but {error.filename} may be read by the administrator only"
    except (OSError, ValueError) as error:
        return f"energy counters are there, but cannot be read: {error}"
    # The platform's counter (psys) contains the packages.
    return tuple(c for c in found if c.name != "psys") or tuple(found)


@final
class EnergyMeter:
    """Joules of the machine's processors between entry and exit of a ``with`` block.

    A counter starts again after some minutes of full load, so the meter looks at it in between.

    Args:
        root: as for ``find_counters``.
        interval_s: seconds between two looks.

    Attributes:
        joules: after the block; None where no counter can be read.
        reason: why ``joules`` is None, else None.
        source: which counters were added up, else None.

    Example:
        >>> with EnergyMeter("/nowhere") as meter:
        ...     _ = sum(range(1000))
        >>> meter.joules, meter.reason
        (None, 'no energy counter: /nowhere has no intel-rapl package')
    """

    def __init__(self, root: str | Path | None = None, *, interval_s: float = 30.0) -> None:
        found = find_counters(root)
        self._counters: tuple[_Counter, ...] = () if isinstance(found, str) else found
        self.reason: str | None = found if isinstance(found, str) else None
        self.source: str | None = None if isinstance(found, str) else "powercap " + " + ".join(c.name for c in found)
        self.joules: float | None = None
        self._interval_s = interval_s
        self._last: list[int] = []
        self._sum_uj = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._watch: threading.Thread | None = None

    def __enter__(self) -> EnergyMeter:
        self._sum_uj, self.joules = 0, None
        if self._counters:
            self._stop.clear()
            self._last = [counter.read() for counter in self._counters]
            self._watch = threading.Thread(target=self._keep_looking, name="secateur-energy", daemon=True)
            self._watch.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._watch is None:
            return
        self._stop.set()
        self._watch.join()
        self._watch = None
        self.look()
        self.joules = None if self.reason else self._sum_uj / 1e6

    def look(self) -> None:
        """Add what the counters advanced since the last look; a smaller value means one full turn."""
        with self._lock:
            try:
                now = [counter.read() for counter in self._counters]
            except (OSError, ValueError) as error:
                self.reason = f"an energy counter became unreadable while measuring: {error}"
                return
            for counter, before, after in zip(self._counters, self._last, now, strict=True):
                turn = counter.range_uj if after < before else 0
                self._sum_uj += after - before + turn
            self._last = now

    def _keep_looking(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.look()


def energy_per_call(
    model: Callable[..., Any],
    inputs: Any,
    *,
    threads: int = 1,
    least_s: float = 0.5,
    root: str | Path | None = None,
) -> Energy | str:
    """Joules per call of a model, over as many calls as fill ``least_s`` seconds.

    The whole machine is in the counters, idle power and neighbours included: compare models, on a quiet machine.

    Args:
        model: a module or other callable; runs in eval mode, without gradients.
        inputs: as for ``latency``.
        threads: torch threads while measuring.
        least_s: seconds to fill; counters advance about every millisecond.
        root: as for ``find_counters``.

    Returns:
        The record; or the reason why there is none.

    Example:
        >>> energy_per_call(abs, -1, root="/nowhere")
        'no energy counter: /nowhere has no intel-rapl package'
    """
    meter = EnergyMeter(root)
    if meter.reason is not None:
        return meter.reason
    keywords: Mapping[str, Any] = inputs if isinstance(inputs, Mapping) else {}
    arguments = () if keywords else inputs if isinstance(inputs, tuple) else (inputs,)
    calls = 0
    with quiet(model), threads_set(threads):
        model(*arguments, **keywords)
        with meter:
            end = time.perf_counter() + least_s
            while calls == 0 or time.perf_counter() < end:
                model(*arguments, **keywords)
                calls += 1
    if meter.joules is None:
        assert meter.reason is not None
        return meter.reason
    return Energy(batch_of(inputs), meter.joules / calls, calls, str(meter.source))
