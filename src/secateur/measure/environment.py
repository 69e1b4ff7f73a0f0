"""Where numbers were taken: processor, threads, instruction set, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from secateur import native
from secateur.records import Environment

__all__ = ["environment"]


def environment() -> Environment:
    """The machine and the software as they are now.

    Returns:
        ``cores`` are those this process may use, ``threads`` torch's, ``isa`` the native core's
        instruction set ("torch" without the core).

    Example:
        >>> environment().torch == torch.__version__
        True
    """
    return Environment(
        cpu=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        isa=native.isa(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        secateur=_version(),
        platform=platform.platform(terse=True),
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version() -> str:
    try:
        return importlib.metadata.version("secateur")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
