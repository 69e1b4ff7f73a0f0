"""How often calls and programs are timed, with clocks of our own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from typing import Any

import pytest
import torch

from secateur.runtime import choose as choosing
from secateur.runtime.choose import interleaved
from secateur.runtime.graph import Graph, Node
from tests.native.oracle import needs_core


def clocked(
    monkeypatch: pytest.MonkeyPatch, seconds: list[list[float]]
) -> tuple[list[Callable[[], object]], list[int]]:
    """Calls that take so long, the last number ever after, and how often each was called."""
    names: list[Callable[[], object]] = [lambda i=i: i for i in range(len(seconds))]
    left = [chain(times, repeat(times[-1])) for times in seconds]
    counts = [0] * len(seconds)

    def taken(call: Callable[[], Any], repeats: int = 1) -> float:
        counts[call()] += 1
        return next(left[call()])

    monkeypatch.setattr(choosing, "_seconds", taken)
    return names, counts


def test_slow_calls_that_lose_clearly_are_not_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, counts = clocked(monkeypatch, [[0.5, 0.3], [2.0, 1.0], [0.4, 0.35, 0.19]])
    assert interleaved(calls) == pytest.approx([3e5, 1e6, 1.9e5])
    assert counts == [3, 2, 3]  # the first one lost when the third one showed 0.19


def test_one_slow_winner_is_not_called_again_either(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, counts = clocked(monkeypatch, [[0.3], [2.0]])
    assert interleaved(calls) == pytest.approx([3e5, 2e6])
    assert counts == [2, 2]


def test_fast_calls_are_medians_of_many_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, counts = clocked(monkeypatch, [[9.0, 1e-5, 3e-5, 1e-5, 2e-5], [1e-3, 1e-3]])
    monkeypatch.setattr(choosing, "_SLOW", 1e9)
    found = interleaved(calls, 0.0)
    assert found == pytest.approx([20.0, 1000.0])
    assert counts == [7, 7]


def test_close_calls_are_called_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, counts = clocked(monkeypatch, [[0.3], [0.4], [0.35, 0.35, 0.35, 0.35, 0.25]])
    assert interleaved(calls) == pytest.approx([3e5, 4e5, 2.5e5])
    assert counts == [5, 5, 5]


@needs_core
@pytest.mark.parametrize(("slow", "rounds"), [(0.0, 2), (1e12, 7)])
def test_slow_networks_run_in_torch_for_the_total_alone(
    monkeypatch: pytest.MonkeyPatch, slow: float, rounds: int
) -> None:
    counted: list[bool] = []
    real = choosing.reference

    def reference(graph: Graph, inputs: Any, times: dict[str, float] | None = None) -> Any:
        counted.append(times is not None)
        return real(graph, inputs, times)

    def twice(calls: list[Callable[[], object]]) -> list[float]:
        for call in calls * 2:
            call()
        return [1.0, 2.0]

    monkeypatch.setattr(choosing, "reference", reference)
    monkeypatch.setattr(choosing, "interleaved", twice)
    monkeypatch.setattr(choosing, "_SLOW", slow)
    torch.manual_seed(0)
    node = Node(kind="linear", output="y", inputs=("x",), weight=torch.randn(8, 8), bias=torch.randn(8))
    graph = Graph((node,), {"x": (8,), "y": (8,)}, ("x",), ("y",))
    found = choosing.choose(graph, [torch.randn(4, 8)], 16)
    assert sum(counted) == rounds
    assert len(counted) == (2 if slow == 0 else 2 + rounds)
    assert found.layers[0].dense_us > 0
