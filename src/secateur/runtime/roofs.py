"""The roofs of this machine, measured: multiply-adds in registers, and reads from each level of memory."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from secateur.native.loading import core
from secateur.records import Bandwidth, Roofs

__all__ = ["cache_sizes", "measure_roofs"]

_SECONDS = {"peak": 0.03, "second cache": 0.05, "last cache": 0.1, "memory": 0.2}
_UNKNOWN = {2: 512 << 10, 3: 8 << 20}  # what to take a cache for that the system does not tell
_LARGEST = 512 << 20


@functools.cache
def measure_roofs() -> Roofs:
    """Measure what one core reaches at most, in half a second; the answer is kept for this process.

    Peaks are multiply-adds on registers alone, in as many as hide their latency. Bandwidths are sums over an array that
    is read over and over: half the second cache, a quarter of the last one, and three times the last one for memory. Of
    each the best of short runs counts, so that what other programs take away does not lower a roof.

    Returns:
        The roofs of one thread, with the instruction set that the kernels use.

    Raises:
        ValueError: the C++ core is absent.

    Example:
        >>> roofs = measure_roofs()
        >>> roofs.gflops > 0 and [found.level for found in roofs.bandwidths][-1] == "memory"
        True
    """
    if core is None:
        raise ValueError("roofs are measured by the C++ core, which is absent: reinstall with a C++17 compiler")
    table, sizes = core.active, cache_sizes()
    second, last = sizes.get(2, _UNKNOWN[2]), sizes.get(3, 0)
    arrays: list[tuple[str, int | None, int]] = [("second cache", second, second // 2)]
    if last >= 8 * second:  # else a quarter of it lies in the second cache, too
        arrays.append(("last cache", last, last // 4))
    farthest = 3 * max(last or _UNKNOWN[3], second)
    arrays.append(("memory", None, max(64 << 20, min(farthest, _LARGEST))))
    return Roofs(
        isa=table.isa,
        gflops=core.roof_fma(table, False, _SECONDS["peak"]) / 1e9,
        gflops_bf16=core.roof_fma(table, True, _SECONDS["peak"]) / 1e9,
        bandwidths=tuple(
            Bandwidth(level, holds, array, core.roof_read(table, array, _SECONDS[level]) / 1e9)
            for level, holds, array in arrays
        ),
    )


def cache_sizes(root: Path = Path("/sys/devices/system/cpu")) -> dict[int, int]:
    """Level -> bytes of the caches for data that one core sees, as far as the system tells.

    Args:
        root: where Linux tells it.

    Example:
        >>> all(size > 0 for size in cache_sizes().values())
        True
    """
    found: dict[int, int] = {}
    for folder in sorted(root.glob("cpu0/cache/index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:  # a container may hide some
            continue
        if kind != "Instruction" and size[:-1].isdecimal() and size[-1] in "KM":
            found[int(level)] = int(size[:-1]) << (10 if size[-1] == "K" else 20)
    return {level: size for level, size in found.items() if size} or _told_by_libc()


def _told_by_libc() -> dict[int, int]:
    names = {level: f"SC_LEVEL{level}_CACHE_SIZE" for level in (2, 3)}
    told = {level: os.sysconf(name) for level, name in names.items() if name in getattr(os, "sysconf_names", {})}
    return {level: size for level, size in told.items() if size > 0}
