"""The same network on the same input in several runtimes: who is fastest, and is it right."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from secateur.measure.latency import batch_of, repeated
from secateur.measure.rivals.case import write_case
from secateur.measure.rivals.rows import rivals_of
from secateur.measure.rivals.runtimes import DEFAULT, Runtime, chosen
from secateur.measure.rivals.turns import Race, Settings
from secateur.records import Rivals

__all__ = ["compare", "compare_all"]


def compare(
    model: nn.Module,
    example: Any,
    *,
    runtimes: Sequence[str] | Mapping[str, Runtime] = DEFAULT,
    threads: int = 1,
    batch: int | None = None,
    rounds: int = 20,
    budget_s: float = 120.0,
    turn_s: float = 0.1,
    deadline_s: float = 600.0,
    title: str | None = None,
) -> Rivals:
    """Milliseconds of one network on one input in several runtimes, each in a process of its own.

    Processes are started one after the other, then take turns, in an order that turns round from round to round; a
    number per runtime and round, of which median and 10 and 90 % quantiles are reported. The first runtime runs in
    a second process too: its ratio to itself is the spread of this machine. Outputs are checked against eager torch
    before the first round and after the last; a runtime whose outputs are wrong is not timed.

    Args:
        model: on the processor; pickled to the processes (its classes must be importable, or stand in the script that
            is run), in eval mode.
        example: a tensor, a tuple of positional arguments, or a mapping of keyword arguments; axis 0 is the batch.
        runtimes: names of ``RUNTIMES``, or name -> ``Runtime``.
        threads: of every runtime, set before it is imported.
        batch: repeat or cut the example to so many samples; None: as it is.
        rounds: turns of each runtime; fewer (at least 5) where they would exceed ``budget_s``.
        budget_s: seconds that the rounds may take; starting, exporting and compiling come on top.
        turn_s: seconds of one turn; one call at least.
        deadline_s: seconds for a runtime to be built and called once, and most for any one turn.
        title: of the table; None: the model's class.

    Returns:
        A record with a row per runtime: a time, or the reason why there is none.

    Raises:
        ValueError: for an unknown runtime, more threads than processors, or a model that cannot be sent.

    Example:
        >>> import torch
        >>> found = compare(nn.Linear(8, 8), torch.zeros(4, 8), runtimes=["eager"], rounds=5, turn_s=0.01)
        >>> [row.name for row in found.rows], found.best, found["eager"].off_by
        (['eager', 'eager again'], 'eager', 0.0)
    """
    settings = Settings(rounds, turn_s, budget_s, deadline_s)
    return compare_all(model, example, (batch,), (threads,), runtimes=runtimes, settings=settings, title=title)[0]


def compare_all(
    model: nn.Module,
    example: Any,
    batches: Sequence[int | None],
    threads: Sequence[int],
    *,
    runtimes: Sequence[str] | Mapping[str, Runtime] = DEFAULT,
    settings: Settings | None = None,
    title: str | None = None,
) -> tuple[Rivals, ...]:
    """``compare`` at several batch sizes and numbers of threads; the network is exported once per batch size.

    Args:
        model: as for ``compare``.
        example: as for ``compare``.
        batches: sizes; None: the example as it is.
        threads: numbers.
        runtimes: as for ``compare``.
        settings: how long to measure.
        title: of the tables.

    Returns:
        One record per batch size and number of threads, in that order.

    Raises:
        ValueError: as ``compare``.
    """
    table = chosen(runtimes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sizes = [1 if batch is None else batch for batch in batches]
    if not threads or not sizes or min(*threads, *sizes) < 1 or max(threads) > cores:
        raise ValueError(
            f"threads {list(threads)}, batches {list(batches)}: there has to be one of each, at least 1, and this "
            f"process may use {cores} processors"
        )
    settings = settings or Settings()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    found: list[Rivals] = []
    for batch in batches:
        inputs = example if batch is None else repeated(example, batch)
        with tempfile.TemporaryDirectory(prefix="secateur-rivals-") as name:
            race = Race(table, Path(name), write_case(model, inputs, Path(name)), settings)
            for count in threads:
                lanes = race.run(count)
                what = (title or type(model).__name__, batch_of(inputs), count)
                found.append(rivals_of(lanes, *what, settings=settings, load=load))
    return tuple(found)
