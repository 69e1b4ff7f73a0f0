"""Goals: what they refuse, what they mean in figures, and how far a point is from them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from secateur.train.compress import Goal
from secateur.train.compress.goal import size_of
from tests.train.compress.nets import trial

DENSE = {"bytes": 1000.0, "params": 200.0, "macs": 400.0}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "asks for nothing"),
        ({"max_drop": -1.0}, "0 or more"),
        ({"speedup": 1.0}, "above 1"),
        ({"speedup": 0.5}, "2.0 is half the time"),
        ({"bytes": 0.0}, "fraction of the dense model"),
        ({"params": -3}, "fraction of the dense model"),
        ({"macs": math.nan}, "is no number"),
        ({"max_drop": True}, "is no number"),
        ({"bytes": "small"}, "is no number"),
    ],
)
def test_what_no_model_can_meet_is_refused(asked: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Goal(**asked)


def test_fractions_up_to_one_and_figures_above() -> None:
    limits = Goal(bytes=0.25, params=50, macs=0.5).against(DENSE)
    assert limits.sizes == {"bytes": 250.0, "params": 50, "macs": 200.0}


@pytest.mark.parametrize("asked", [{"bytes": 1.0}, {"bytes": 1000}, {"params": 300}, {"macs": 1.0}])
def test_what_the_dense_model_has_is_no_goal(asked: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"has .* already"):
        Goal(**asked).against(DENSE)


def test_macs_that_are_not_counted_are_no_goal() -> None:
    with pytest.raises(ValueError, match="no multiply-add of this model is counted"):
        Goal(macs=0.5).against({**DENSE, "macs": 0})


def test_a_drop_of_exactly_what_may_be_lost_is_allowed() -> None:
    point = trial(drop=99.0 * 0.01 * 100 - 98.0 * 0.01 * 100 + 1e-13)
    assert point.valid.drop > 1.0  # as floating point has it
    assert Goal(max_drop=1.0).against(DENSE).misses(point) == {}
    assert Goal(max_drop=0.99).against(DENSE).misses(point).keys() == {"max_drop"}


def test_what_a_point_misses() -> None:
    limits = Goal(max_drop=1.0, speedup=2.0, bytes=0.5, macs=0.5).against(DENSE)
    good = trial(bytes=500, macs=200, speedup=2.0, drop=1.0)
    assert limits.misses(good) == {}
    assert limits.told(good) == ()
    bad = trial(bytes=750, macs=200, speedup=1.0, drop=3.0)
    assert limits.misses(bad) == {"bytes": 0.5, "speedup": 1.0, "max_drop": 2.0}
    words = " ".join(limits.told(bad))
    assert re.search(r"750 B, a file of 500 B asked", words)
    assert "1.00 x as fast, 2 x asked" in words
    assert "3.00 points lost on valid, 1 allowed" in words


def test_slack_asks_for_more() -> None:
    limits = Goal(bytes=0.5).against(DENSE)
    assert limits.misses_of_size({"bytes": 499}) == {}
    assert "bytes" in limits.misses_of_size({"bytes": 499}, slack=0.01)


def test_smaller_means_bytes_unless_only_speed_is_asked() -> None:
    point = trial(bytes=7, macs=9)
    assert size_of(Goal(max_drop=1), point) == (7, 9)
    assert size_of(Goal(speedup=2), point) == (9, 7)
    assert size_of(Goal(speedup=2, bytes=0.5), point) == (7, 9)
