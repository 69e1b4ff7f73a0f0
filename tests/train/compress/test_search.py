"""Bisection and Optuna spend the same trials on the same candidates."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from secateur.train.compress import Compressed, Goal, compress
from secateur.train.compress.sampler import make_sampler
from tests.train.compress.nets import digits, no_clock, recovery, trained_mlp


def run(goal: Goal, **choices: Any) -> Compressed:
    data = digits()
    own: dict[str, Any] = {"recovery": recovery, "rivals": False, "progress": False, "trials": 4} | choices
    return compress(trained_mlp(), data.train, data.valid, goal=goal, **own)


@pytest.mark.parametrize("goal", [Goal(max_drop=10.0, bytes=0.5), Goal(params=0.4)])
def test_optuna_meets_the_goal_and_repeats_itself(goal: Goal, monkeypatch: pytest.MonkeyPatch) -> None:
    no_clock(monkeypatch)
    one, two = run(goal, search="optuna"), run(goal, search="optuna")
    assert one.met
    keys = [point.key for point in one.record.points]
    assert keys == [point.key for point in two.record.points]
    assert 2 <= len(keys) <= 4
    assert {point.family for point in one.record.points} == {"weights, global", "weights, uniform"}


def test_the_sampler_stays_in_its_spans_and_learns() -> None:
    sampler = make_sampler({"a": (10, 20), "b": (5, 50)}, seed=0, trials=30)
    asked: list[tuple[str, int]] = []
    for _ in range(30):
        name, index = sampler.ask()
        asked.append((name, index))
        assert {"a": 10, "b": 5}[name] <= index <= {"a": 20, "b": 50}[name]
        sampler.tell(abs(index - 40), {"bytes": -1.0 if name == "b" else 1.0})
    assert asked[:2] == [("a", 10), ("b", 5)]
    late = asked[15:]
    assert sum(name == "b" for name, _ in late) > len(late) / 2


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name == "optuna":
            raise ModuleNotFoundError("No module named 'optuna'", name="optuna")
        return real(name, *rest)

    no_clock(monkeypatch)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"secateur\[search\].*search='bisect' needs nothing"):
        run(Goal(bytes=0.5), search="optuna")
