"""How many threads the core may use."""

from __future__ import annotations

import torch

from secateur.native.loading import core

__all__ = ["usable_threads"]


def usable_threads() -> int:
    """Count the threads that a program of the core gets unless told otherwise.

    ``min(torch.get_num_threads(), processors, affinity mask, control group quota rounded up)``

    Returns:
        1 or more. Without the core, what torch uses.

    Example:
        >>> 1 <= usable_threads() <= torch.get_num_threads()
        True
    """
    threads = torch.get_num_threads()
    return threads if core is None else min(threads, core.usable_threads())
