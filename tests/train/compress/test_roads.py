"""Stages as they are walked: before, during and after training, one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.train.compress import Goal, Stage, compress
from secateur.train.compress import road as road_module
from secateur.train.compress.road import fresh, trained, untrained
from secateur.train.compress.setting import Judge, Setting, copied
from tests.train.compress.nets import conv_net, digits, no_clock, recovery, trained_mlp


def setting(model: nn.Module, **choices: Any) -> Setting:
    dense, data = copied(model), digits()
    own: dict[str, Any] = {"recovery": recovery, "seed": 0} | choices
    return Setting(
        dense, data.train, data.valid, data.test, judge=Judge(dense, None), example=data.valid[0][:2], batch=1, **own
    )


def zeros(model: nn.Module) -> int:
    return sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_masks_stand_at_the_end_of_every_road(when: Any) -> None:
    here = setting(trained_mlp())
    stages = (Stage(when=when),)
    before = {n: t.clone() for n, t in here.dense.state_dict().items()}
    found = trained(here, stages, (0.8,))
    masks = sc.find_masks(found.model)
    assert masks is not None
    masks.check()
    weights = sum(p.numel() for p in here.dense.parameters() if p.dim() > 1)
    assert sum(masks.kept(name) for name in masks) == weights - int(0.8 * weights + 0.5)
    assert (found.epochs, found.steps) == (1, 10)
    assert all(torch.equal(before[n], t) for n, t in here.dense.state_dict().items())


def test_before_training_begins_with_fresh_weights() -> None:
    here = setting(trained_mlp(), seed=3)
    one = untrained(here, (Stage(when="before"),), (0.5,))
    kept = one[0].weight != 0
    assert not bool((one[0].weight == here.dense[0].weight)[kept].any())
    again = untrained(here, (Stage(when="before"),), (0.5,))
    assert torch.equal(one[0].weight, again[0].weight)


def test_the_users_own_fresh_weights_are_taken() -> None:
    torch.manual_seed(5)
    first = conv_net()
    here = setting(trained_mlp(), fresh_state=trained_mlp().state_dict())
    assert torch.equal(fresh(here, here.dense)[0].weight, here.dense[0].weight)
    with pytest.raises(ValueError, match="state dict of another network"):
        fresh(replace(here, fresh_state=first.state_dict()), here.dense)
    filled = setting(trained_mlp(), initialise=lambda model: model[0].weight.fill_(2.0))
    assert bool((fresh(filled, filled.dense)[0].weight == 2.0).all())


@pytest.mark.parametrize("when", ["during", "after"])
def test_channels_are_taken_out_and_batch_norms_taken_again(when: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = road_module.recalibrate

    def counted(model: nn.Module, data: Any, **choices: Any) -> Any:
        seen.append(model[1].out_channels)
        return real(model, data, **choices)

    monkeypatch.setattr(road_module, "recalibrate", counted)
    here = setting(conv_net())
    stages = (Stage(when=when, unit="channel", allocation="uniform"),)
    found = trained(here, stages, (0.5,))
    assert (found.model[1].out_channels, found.model[4].out_channels) == (4, 6)
    assert seen == [4]
    assert sc.find_masks(found.model) is None


def test_a_hybrid_takes_channels_out_and_then_masks_what_is_left() -> None:
    here = setting(conv_net())
    stages = (Stage(unit="channel", round_to=2), Stage(epochs=2))
    found = trained(here, stages, (0.5, 0.75))
    masks = sc.find_masks(found.model)
    assert masks is not None
    assert found.model[1].out_channels % 2 == found.model[4].out_channels % 2 == 0
    left = sum(p.numel() for p in found.model.parameters() if p.dim() > 1)
    assert zeros(found.model) == int(0.75 * left + 0.5)
    assert found.epochs == 3


def test_an_allocation_that_shrink_does_not_have_goes_by_masks() -> None:
    here = setting(trained_mlp())
    small = untrained(here, (Stage(unit="channel", allocation="erk", criterion="snip"),), (0.5,))
    assert sum(layer.out_features for layer in (small[0], small[2])) == 40
    assert sc.find_masks(small) is None


def test_the_users_stages_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    no_clock(monkeypatch)
    data = digits()
    result = compress(
        trained_mlp(),
        data.train,
        data.valid,
        goal=Goal(params=0.5),
        recovery=recovery,
        stages=[Stage(when="during", unit="filter", criterion="taylor")],
        trials=2,
        rivals=False,
        progress=False,
    )
    masks = sc.find_masks(result.model)
    assert result.met
    assert masks is not None
    assert masks.unit.spec == "filter"
    assert result.record.families["stages"][0]["criterion"] == "taylor"


def test_a_pattern_alone_is_one_point(monkeypatch: pytest.MonkeyPatch) -> None:
    no_clock(monkeypatch)
    data = digits()
    choices: dict[str, Any] = {
        "recovery": recovery,
        "stages": [Stage(unit="2 of 4")],
        "rivals": False,
        "progress": False,
    }
    result = compress(trained_mlp(), data.train, data.valid, goal=Goal(max_drop=50.0), trials=5, **choices)
    assert [point.sparsities for point in result.record.points] == [(0.5,)]
    assert result.met
