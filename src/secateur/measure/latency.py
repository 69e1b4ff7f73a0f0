"""Milliseconds per call, of several models in the same rounds, so that the machine's mood hits all alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from secateur.measure.quiet import quiet
from secateur.records import Latency

__all__ = [
    "Speed",
    "Times",
    "against_itself",
    "batch_of",
    "interleaved",
    "latency",
    "quantile",
    "repeated",
    "threads_set",
]

_BLOCK_S = 0.002
_LEAST_ROUNDS = 5
_TRIES = 4
_SHORT_S = 0.02
_LOST = 0.1
"""Share of a block that its thread may wait for a processor: a neighbour's time slice is longer than a block."""


@dataclass(frozen=True)
class Times:
    """Milliseconds per call of one model, one number per round; round i of all models stands side by side."""

    batch: int
    threads: int
    ms: tuple[float, ...]

    def summary(self) -> Latency:
        """Median and quartiles."""
        low, median, high = (quantile(self.ms, q) for q in (0.25, 0.5, 0.75))
        return Latency(self.batch, self.threads, median, low, high, len(self.ms))


def latency(
    models: Mapping[str, Callable[..., Any]],
    inputs: Any,
    *,
    rounds: int = 30,
    threads: int = 1,
    warmup: int = 3,
    budget_s: float = 20.0,
) -> dict[str, Latency]:
    """Median and quartiles of the time per call, all models measured in interleaved rounds of one run.

    In every round each model runs one block of calls, long enough (2 ms) for the clock; the order turns
    around from round to round. A short block that lost the processor to another process is taken again.
    Give the dense model twice, under two names: the ratio of the two is the spread of this machine against
    itself, and no other ratio within it is a gain.

    Args:
        models: name -> module or other callable; modules run in eval mode, without gradients.
        inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments; axis 0 is the batch.
        rounds: how many; fewer (at least 5) where they would exceed ``budget_s``.
        threads: torch threads while measuring; restored afterwards.
        warmup: calls of each model before the first round.
        budget_s: seconds that the rounds may take in all.

    Returns:
        Name -> milliseconds per call at this batch and these threads.

    Raises:
        ValueError: for no model, or counts below 1.

    Example:
        >>> found = latency(
        ...     {"dense": torch.nn.Linear(8, 8), "dense again": torch.nn.Linear(8, 8)}, torch.zeros(4, 8), rounds=5
        ... )
        >>> found["dense"].batch, found["dense"].rounds, found["dense"].median_ms > 0
        (4, 5, True)
    """
    times = interleaved(models, inputs, rounds=rounds, threads=threads, warmup=warmup, budget_s=budget_s)
    return {name: found.summary() for name, found in times.items()}


def interleaved(
    models: Mapping[str, Callable[..., Any]],
    inputs: Any,
    *,
    rounds: int = 30,
    threads: int = 1,
    warmup: int = 3,
    budget_s: float = 20.0,
) -> dict[str, Times]:
    """What ``latency`` summarises: every round's time per call."""
    if not models or min(rounds, threads, warmup) < 1 or budget_s <= 0:
        raise ValueError(
            f"latency: {len(models)} models, rounds={rounds}, threads={threads}, warmup={warmup}, budget_s={budget_s}; "
            "each has to be at least 1, and the budget positive"
        )
    calls = {name: _call(model, inputs) for name, model in models.items()}
    with quiet(*models.values()), threads_set(threads), _no_collection():
        once = {name: _warm(call, warmup) for name, call in calls.items()}
        repeats = {name: max(1, math.ceil(_BLOCK_S / seconds)) for name, seconds in once.items()}
        per_round = sum(repeats[name] * once[name] for name in calls)
        rounds = max(min(rounds, int(budget_s / per_round)), min(rounds, _LEAST_ROUNDS))
        ms: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(rounds):
            for name in list(calls) if turn % 2 == 0 else list(calls)[::-1]:
                ms[name].append(1e3 * _block(calls[name], repeats[name]) / repeats[name])
    batch = batch_of(inputs)
    return {name: Times(batch, threads, tuple(found)) for name, found in ms.items()}


@dataclass(frozen=True)
class Speed:
    """Dense against sparse, and dense against itself, per batch size.

    Attributes:
        latency: of dense, of sparse.
        ratio: median of dense / median of sparse.
        itself: median of dense / median of dense measured a second time in the same rounds.
        spread: how far the ratio of equal models strays, round by round (10 and 90 % quantiles of dense against
            itself and of the sparse model's own noise, the wider); a ``ratio`` inside is no gain.
    """

    latency: tuple[tuple[Latency, ...], tuple[Latency, ...]]
    ratio: tuple[float, ...]
    itself: tuple[float, ...]
    spread: tuple[tuple[float, float], ...]


def against_itself(
    dense: Callable[..., Any],
    sparse: Callable[..., Any],
    inputs: Any,
    batches: tuple[int, ...],
    *,
    rounds: int,
    threads: int,
    budget_s: float = 20.0,
) -> Speed:
    """Latency of both models at several batch sizes, with dense measured twice in every round."""
    models = {"dense": dense, "sparse": sparse, "dense again": dense}
    runs = [
        interleaved(models, repeated(inputs, batch), rounds=rounds, threads=threads, budget_s=budget_s)
        for batch in batches
    ]
    rows = [{name: times.summary() for name, times in run.items()} for run in runs]
    return Speed(
        latency=(tuple(row["dense"] for row in rows), tuple(row["sparse"] for row in rows)),
        ratio=tuple(row["dense"].median_ms / row["sparse"].median_ms for row in rows),
        itself=tuple(row["dense"].median_ms / row["dense again"].median_ms for row in rows),
        spread=tuple(_spread(run["dense"], run["dense again"], run["sparse"]) for run in runs),
    )


def _spread(dense: Times, again: Times, sparse: Times) -> tuple[float, float]:
    """How far the ratio of two equally fast models strays: by the dense model's noise and by the sparse one's.

    Which of the two is named first must not matter, so every ratio counts with its inverse.
    """
    itself = [a / b for a, b in zip(dense.ms, again.ms, strict=True)]
    against = [a / b for a, b in zip(dense.ms, sparse.ms, strict=True)]
    middle = quantile(against, 0.5)
    ranges: list[tuple[float, float]] = []
    for ratios in (itself, [ratio / middle for ratio in against]):
        both = ratios + [1 / ratio for ratio in ratios]
        ranges.append((quantile(both, 0.1), quantile(both, 0.9)))
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def repeated(inputs: Any, batch: int) -> Any:
    """The samples over and over until there are ``batch`` of them.

    Example:
        >>> repeated(torch.tensor([1, 2]), 5)
        tensor([1, 2, 1, 2, 1])
    """
    if isinstance(inputs, Tensor):
        if not inputs.ndim:
            return inputs
        return inputs[torch.arange(batch, device=inputs.device) % len(inputs)]
    if isinstance(inputs, tuple):
        return tuple(repeated(item, batch) for item in cast("tuple[Any, ...]", inputs))
    if isinstance(inputs, Mapping):
        return {key: repeated(item, batch) for key, item in cast("Mapping[str, Any]", inputs).items()}
    return inputs


def batch_of(inputs: Any) -> int:
    """Length of axis 0 of the first tensor in the inputs; 1 if there is none."""
    if isinstance(inputs, Tensor):
        return inputs.shape[0] if inputs.ndim else 1
    items = list(cast("Mapping[str, Any]", inputs).values()) if isinstance(inputs, Mapping) else inputs
    if isinstance(items, (tuple, list)):
        return next((batch_of(item) for item in cast("list[Any]", items) if isinstance(item, Tensor)), 1)
    return 1


def quantile(values: tuple[float, ...] | list[float], share: float) -> float:
    """Quantile by linear interpolation, as NumPy's default.

    Example:
        >>> quantile([4.0, 1.0, 2.0], 0.25)
        1.5
    """
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@contextmanager
def threads_set(threads: int) -> Iterator[None]:
    """Run with so many torch threads, then with as many as before.

    Example:
        >>> with threads_set(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _call(model: Callable[..., Any], inputs: Any) -> Callable[[], Any]:
    if isinstance(inputs, Mapping):
        keywords = dict(cast("Mapping[str, Any]", inputs))
        return lambda: model(**keywords)
    arguments = cast("tuple[Any, ...]", inputs) if isinstance(inputs, tuple) else (inputs,)
    return lambda: model(*arguments)


def _block(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of a block of calls; taken again where another process had the processor meanwhile.

    Of the tries the first counts during which the thread ran throughout, else the one that waited least.
    """
    tries: list[tuple[float, float]] = []
    for _ in range(_TRIES):
        _wait()
        start, ran = time.perf_counter(), time.thread_time()
        for _ in range(repeats):
            call()
        _wait()
        seconds, ran = time.perf_counter() - start, time.thread_time() - ran
        tries.append((seconds - ran, seconds))
        if seconds - ran <= _LOST * seconds or seconds > _SHORT_S:  # a long block averages over its neighbours
            break
    return min(tries)[1]


def _wait() -> None:
    """Accelerators run behind the caller's back; a clock that does not wait measures the launch."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _warm(call: Callable[[], Any], warmup: int) -> float:
    """Seconds of a typical call after warm-up, never zero."""
    for _ in range(warmup):
        call()
    return max(statistics.median(_block(call, 1) for _ in range(3)), 1e-7)
