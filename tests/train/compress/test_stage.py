"""Stages and families: what goes together, and how one strength is shared."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.train.compress import Goal, Stage
from secateur.train.compress.candidates import Family, as_strength, families_for
from secateur.train.compress.identity import key_of
from secateur.train.compress.stage import check_stages


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"when": "later"}, "known are 'before', 'during' and 'after'"),
        ({"epochs": -1}, "whole number from 0"),
        ({"when": "during", "epochs": 0}, "need epochs"),
        ({"schedule": "cubic"}, "leave it out"),
        ({"sparsity": 0.0}, "removes nothing"),
        ({"sparsity": 1.5}, "a share, not per cent"),
        ({"round_to": 8}, "taken out at once"),
        ({"unit": "channel", "when": "during", "round_to": 8}, "taken out at once"),
        ({"criterion": "magnitud"}, "magnitude"),
        ({"unit": "2 of 4", "sparsity": 0.9}, "leave it out"),
    ],
)
def test_what_does_not_go_together_is_refused(choices: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Stage(**choices)


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        ([], "at least one"),
        ([Stage(), Stage(when="before")], "has to be the first"),
        ([Stage(), Stage(unit="channel")], "before the masks"),
        ([Stage(), Stage(when="during")], "put it first"),
        ([Stage(unit="filter"), Stage()], "masks of one unit"),
    ],
)
def test_stages_that_cannot_follow_each_other(stages: list[Stage], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_stages(stages)


def test_a_pattern_is_not_searched() -> None:
    stage = Stage(unit="2 of 4")
    assert not stage.searched
    assert Family("pattern", (stage,)).sparsities(0.9) == (0.5,)


def test_one_strength_is_about_the_share_of_weights_that_goes() -> None:
    both = Family("both", (Stage(unit="channel"), Stage()))
    for index in (10, 64, 200):
        strength = as_strength(index)
        channels, weights = both.sparsities(strength)
        kept = (1 - channels) ** 2 * (1 - weights)
        assert kept == pytest.approx(1 - strength, rel=1e-3)
    settled = both.fixed(0, 0.5)
    assert settled.sparsities(0.75) == (0.5, 0.75)
    assert Family("one", (Stage(),)).sparsities(0.9) == (0.9,)


def test_families_follow_the_goal() -> None:
    def names(**asked: float) -> list[str]:
        return [family.name for family in families_for(Goal(**asked), None)]

    assert names(bytes=0.1) == names(params=0.1, max_drop=1) == ["weights, global", "weights, uniform"]
    assert names(macs=0.5) == names(speedup=2) == ["channels, global", "channels, uniform"]
    assert names(speedup=2, bytes=0.1) == ["channels, global, then weights", "channels, uniform, then weights"]
    assert names(max_drop=1) == ["weights, global", "channels, global, then weights"]


def test_masks_alone_make_nothing_faster() -> None:
    with pytest.raises(ValueError, match="a masked dense tensor runs as long as before"):
        families_for(Goal(speedup=2), [Stage()])
    assert families_for(Goal(speedup=2), [Stage(unit="channel")])[0].last == 160


def test_keys_tell_candidates_apart() -> None:
    one, two = Family("a", (Stage(),)), Family("a", (Stage(criterion="random"),))
    assert len({key_of(one, (0.5,)), key_of(one, (0.6,)), key_of(two, (0.5,))}) == 3
    assert key_of(one, (0.5,)) == key_of(Family("b", (Stage(),)), (0.5,))


def test_lists_of_targets_are_kept_as_tuples() -> None:
    """What a search remembers goes by its stages, and no list is a key; recipes give lists."""
    stage = Stage(targets=["*weight", "*bias"], exclude=["6"])
    assert (stage.targets, stage.exclude) == (("*weight", "*bias"), ("6",))
    assert {stage: 1}[Stage(targets=("*weight", "*bias"), exclude=("6",))] == 1
