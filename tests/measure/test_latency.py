"""Latency: models of a known duration, interleaved, threads restored."""

from __future__ import annotations

import gc
import importlib
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.measure import latency
from secateur.measure.latency import Times, against_itself, interleaved, quantile, repeated


class Sleeps(nn.Module):
    """Takes so long, and writes down that it ran, with how many threads, and in which mode."""

    def __init__(self, ms: float, log: list[str], name: str) -> None:
        super().__init__()
        self.ms, self.log, self.name = ms, log, name
        self.seen: set[tuple[int, bool, bool, bool]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.log.append(self.name)
        self.seen.add((torch.get_num_threads(), self.training, torch.is_grad_enabled(), gc.isenabled()))
        if self.ms:
            time.sleep(self.ms / 1e3)
        return x


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No block counts as one that lost the processor: sleeping looks like that."""
    monkeypatch.setattr(time, "thread_time", time.perf_counter)


@pytest.mark.parametrize(("lost", "calls", "expected"), [([0.0], 1, 3.0), ([5, 0], 2, 3.0), ([9, 4, 6, 5], 4, 7.0)])
def test_a_block_that_lost_the_processor_is_taken_again(
    monkeypatch: pytest.MonkeyPatch, lost: list[float], calls: int, expected: float
) -> None:
    """Each call runs 3 ms, and another process has the processor for so many."""
    now, ran, waiting = [0.0], [0.0], iter(lost)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", lambda: ran[0])
    made: list[int] = []

    def call() -> None:
        made.append(1)
        ran[0] += 0.003
        now[0] += 0.003 + next(waiting) / 1e3

    block = importlib.import_module("secateur.measure.latency")._block
    assert 1e3 * block(call, 1) == pytest.approx(expected)
    assert len(made) == calls


def test_a_long_block_is_not_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ran = [0.0], [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", lambda: ran[0])

    def call() -> None:
        ran[0] += 0.1
        now[0] += 0.2

    assert importlib.import_module("secateur.measure.latency")._block(call, 1) == pytest.approx(0.2)
    assert ran == [pytest.approx(0.1)]


@pytest.mark.usefixtures("undisturbed")
def test_durations_are_found_in_interleaved_rounds() -> None:
    log: list[str] = []
    slow, fast = Sleeps(6, log, "slow"), Sleeps(3, log, "fast")
    found = latency({"slow": slow, "fast": fast}, torch.zeros(7, 2), rounds=6, warmup=1)
    assert 6 <= found["slow"].low_ms <= found["slow"].median_ms <= found["slow"].high_ms
    assert 3 <= found["fast"].median_ms < found["slow"].median_ms
    assert (found["slow"].batch, found["slow"].threads, found["slow"].rounds) == (7, 1, 6)
    # One call each per round (3 ms fill a block), and the order turns around.
    assert log[-12:] == ["slow", "fast", "fast", "slow"] * 3


@pytest.mark.usefixtures("undisturbed")
def test_short_calls_fill_a_block_and_a_budget_ends_long_ones() -> None:
    log: list[str] = []
    times = interleaved({"short": Sleeps(0, log, "short")}, torch.zeros(1), rounds=5, warmup=1)["short"]
    assert times.summary().median_ms < 1  # per call, not per block
    assert len(log) - 4 >= 5 * 10  # 2 ms hold hundreds of calls of some microseconds
    found = latency({"long": Sleeps(10, [], "long")}, torch.zeros(1), rounds=1000, warmup=1, budget_s=0.1)
    assert 5 <= found["long"].rounds <= 10
    found = latency({"longer": Sleeps(10, [], "longer")}, torch.zeros(1), rounds=1000, warmup=1, budget_s=1e-3)
    assert found["longer"].rounds == 5


def test_threads_mode_and_collector_are_set_and_restored() -> None:
    before, model = torch.get_num_threads(), Sleeps(0.1, [], "a").train()
    latency({"a": model}, torch.zeros(1), rounds=2, threads=before + 1)
    assert model.seen == {(before + 1, False, False, False)}
    assert (torch.get_num_threads(), model.training, torch.is_grad_enabled(), gc.isenabled()) == (
        before,
        True,
        True,
        True,
    )


def test_dense_against_itself_is_near_one_and_a_slower_model_is_seen() -> None:
    dense, sparse = Sleeps(3, [], "dense"), Sleeps(9, [], "sparse")
    found = against_itself(dense, sparse, torch.zeros(2, 3), (1, 4), rounds=6, threads=1)
    assert [row.batch for row in found.latency[0]] == [1, 4]
    for ratio, itself, (low, high) in zip(found.ratio, found.itself, found.spread, strict=True):
        assert ratio < 0.6 < itself < 1.7
        assert 0.3 < low <= 1 <= high < 3


def test_the_spread_counts_the_noise_of_the_sparse_side_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A steady dense model against a restless one of the same speed: a lucky median must not pass for a gain."""
    steady, restless = (2.0,) * 10, (1.0, 4.0) * 5
    times = {"dense": steady, "dense again": steady, "sparse": restless}
    module = importlib.import_module("secateur.measure.latency")  # the room's function has the same name
    monkeypatch.setattr(module, "interleaved", lambda *_, **__: {n: Times(1, 1, ms) for n, ms in times.items()})
    ((low, high),) = against_itself(nn.Identity(), nn.Identity(), torch.zeros(1), (1,), rounds=10, threads=1).spread
    # dense / sparse is 2 or 1/2 around a median of 5/4: 1.6 and 0.4, and their inverses
    assert (low, high) == pytest.approx((0.4, 2.5))
    times["sparse"] = steady
    ((low, high),) = against_itself(nn.Identity(), nn.Identity(), torch.zeros(1), (1,), rounds=10, threads=1).spread
    assert (low, high) == (1.0, 1.0)


def test_inputs_of_every_kind_are_repeated_to_the_batch() -> None:
    x = torch.arange(6).view(3, 2)
    assert repeated(x, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert repeated((x, "flag"), 2)[0].tolist() == [[0, 1], [2, 3]]
    found = latency({"add": lambda *, a, b: a + b}, {"a": repeated(x, 4), "b": torch.tensor(1)}, rounds=1)
    assert found["add"].batch == 4


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=9), st.floats(0, 1))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)), abs=1e-9)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"threads": 0}, {"warmup": 0}, {"budget_s": 0}])
def test_counts_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        latency({"a": nn.Identity()}, torch.zeros(1), **wrong)
