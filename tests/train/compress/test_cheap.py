"""The cheap bisection against an exhaustive walk over the grid, and the clock on a busy machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from torch import nn

from secateur.measure.latency import Speed
from secateur.records import Latency
from secateur.train.compress import figures
from secateur.train.compress.candidates import Family, as_strength, families_for
from secateur.train.compress.cheap import find_range
from secateur.train.compress.figures import clocked, file_bytes, sizes_of
from secateur.train.compress.goal import Goal, Limits
from secateur.train.compress.journal import Journal
from secateur.train.compress.road import untrained
from secateur.train.compress.setting import Judge, Setting, copied
from secateur.train.compress.stage import Stage
from secateur.train.loop.training import Training
from tests.train.compress.nets import digits, no_clock, trained_mlp


def setting(model: nn.Module) -> Setting:
    dense, data = copied(model), digits()
    recovery = Training(1, loss=F.cross_entropy)
    return Setting(
        dense, data.train, data.valid, None, recovery, Judge(dense, None), example=data.valid[0][:2], batch=1, seed=0
    )


def meets(here: Setting, family: Family, index: int, limits: Limits) -> bool:
    found = sizes_of(here, untrained(here, family.stages, family.sparsities(as_strength(index))))
    return all(found[name] <= limit for name, limit in limits.sizes.items())


@pytest.mark.parametrize("goal", [Goal(bytes=0.3), Goal(params=0.2), Goal(macs=0.5), Goal(bytes=0.2, macs=0.6)])
def test_the_least_strength_is_the_first_on_the_grid_that_does(goal: Goal) -> None:
    here = setting(trained_mlp())
    dense = sizes_of(here, here.dense)
    limits = goal.against(dense)
    family = families_for(goal, None)[-1]
    journal = Journal(None, {})
    least = find_range(here, family, limits, journal).least
    assert least is not None
    assert meets(here, family, least, limits)
    assert not any(meets(here, family, index, limits) for index in range(max(1, least - 6), least))
    assert dense["bytes"] == file_bytes(here.dense)


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    here = setting(trained_mlp())
    limits = Goal(bytes=0.3).against(sizes_of(here, here.dense))
    family, journal = Family("weights", (Stage(),)), Journal(None, {})
    first = find_range(here, family, limits, journal)
    monkeypatch.setattr("secateur.train.compress.cheap.untrained", None)  # calling it would fail
    assert find_range(here, family, limits, journal) == first


def test_the_strongest_is_what_can_still_be_built() -> None:
    net = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    here = setting(net)
    family = Family("channels", (Stage(unit="channel"),))
    found = find_range(here, family, Goal(macs=0.001).against(sizes_of(here, here.dense)), Journal(None, {}))
    assert found.least is None
    narrowest = untrained(here, family.stages, family.sparsities(as_strength(found.last)))
    assert narrowest[0].out_features == 1
    with pytest.raises(ValueError, match="cannot be met"):
        untrained(here, family.stages, family.sparsities(as_strength(found.last + 1)))


def test_a_speedup_is_met_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    no_clock(monkeypatch)  # milliseconds are multiply-adds
    here = setting(trained_mlp())
    family = Family("channels", (Stage(unit="channel"),))
    least = find_range(here, family, Limits(None, 2.0, {}), Journal(None, {})).least
    assert least is not None
    work = [
        sizes_of(here, untrained(here, family.stages, family.sparsities(as_strength(index))))["macs"]
        for index in (least, least - 1)
    ]
    whole = sizes_of(here, here.dense)["macs"]
    assert whole / work[0] >= 2.06 > whole / work[1]


def test_on_a_busy_machine_the_quietest_of_three_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(9.0, 4.0), (1.5, 1.3), (5.0, 2.0)]
    seen: list[float] = []

    def speed(*_: Any, **__: Any) -> Speed:
        ratio, high = rows[len(seen)]
        seen.append(ratio)
        latency = (Latency(1, 1, 1.0, 1.0, 1.0, 5),)
        return Speed((latency, latency), (ratio,), (1.0,), ((1 / high, high),))

    monkeypatch.setattr(figures, "against_itself", speed)
    here = setting(trained_mlp())
    assert clocked(here, here.dense).speedup == 1.5
    assert len(seen) == 3
    seen.clear()
    rows[0] = (1.0, 1.1)
    assert clocked(here, here.dense).speedup == 1.0
    assert len(seen) == 1
