from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateur.model.removal import Removal, remove, tensor_shapes

VALUES = st.one_of(
    st.integers(-5, 50), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.integers(0, 9)).map(tuple)
)
NAMES = st.sampled_from(["conv.weight", "fc.bias", "norm"])
POSITIONS = st.lists(st.integers(0, 40), min_size=1, unique=True).map(tuple)
REMOVALS = st.builds(
    Removal,
    st.dictionaries(NAMES, st.dictionaries(st.integers(0, 3), POSITIONS)),
    st.dictionaries(NAMES, st.dictionaries(st.sampled_from(["heads", "eps"]), VALUES)),
    st.dictionaries(NAMES, st.floats(0.1, 10)),
)


@given(REMOVALS)
def test_a_record_is_plain_json_and_comes_back_equal(removal: Removal) -> None:
    text = json.dumps(removal.to_record(), allow_nan=False)
    assert Removal.from_record(json.loads(text)) == removal


def test_a_record_is_compact() -> None:
    kept = tuple(range(400)) + tuple(range(500, 1000))
    removal = Removal({f"layer{i}.weight": {0: kept, 1: kept} for i in range(20)})
    assert removal.to_record()["positions"] == [[0, 400, 500, 1000]]
    assert len(json.dumps(removal.to_record())) < 800


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r.pop("scales"), "has positions, kept, attributes and scales"),
        (lambda r: r.update(positions=3), "positions is not a list"),
        (lambda r: r.update(positions=[[0, 3, 5]]), "runs"),
        (lambda r: r.update(positions=[[3, 3]]), "start < stop"),
        (lambda r: r.update(positions=[[-1, 3]]), "runs"),
        (lambda r: r.update(positions=[[0, True]]), "runs"),
        (lambda r: r.update(positions=["ab"]), "runs"),
        (lambda r: r.update(positions=[[0, 10**12]]), "more than"),
        (lambda r: r.update(kept={"w": {"0": 7}}), "no list of positions 7"),
        (lambda r: r.update(kept={"w": {"0": -1}}), "no list of positions -1"),
        (lambda r: r.update(kept={"w": {"x": 0}}), "no axis"),
        (lambda r: r.update(kept={"w": [0]}), "kept of w is a list"),
        (lambda r: r.update(attributes={"m": {"heads": "4"}}), "heads is '4'"),
        (lambda r: r.update(attributes={"m": {"heads": True}}), "heads is True"),
        (lambda r: r.update(attributes={"m": {"heads": float("nan")}}), "heads is nan"),
        (lambda r: r.update(attributes={"m": {"heads": [1.5]}}), r"heads is \[1.5\]"),
        (lambda r: r.update(scales={"w": [2]}), r"w is \[2\]"),
    ],
)
def test_a_damaged_record_is_refused(damage: Callable[[dict[str, Any]], Any], message: str) -> None:
    record = Removal({"w": {0: (0, 1)}}).to_record()
    damage(record)
    with pytest.raises(ValueError, match=message):
        Removal.from_record(record)
    with pytest.raises(ValueError, match="not a table"):
        Removal.from_record([record])


def test_empty_means_nothing_to_do() -> None:
    assert Removal().is_empty
    assert Removal({"w": {}}, {"m": {}}).is_empty
    assert not Removal(scales={"w": 2.0}).is_empty
    assert not Removal(attributes={"m": {"heads": 2}}).is_empty
    assert not Removal({"w": {0: (0,)}}).is_empty


def test_shapes_before_and_after() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    removal = Removal({"0.weight": {0: (1, 2), 1: (0,)}, "1.running_mean": {0: (7,)}, "1.weight": {}})
    expected = {"0.weight": ((8, 3, 3, 3), (2, 1, 3, 3)), "1.running_mean": ((8,), (1,))}
    assert removal.shapes(net) == removal.shapes(tensor_shapes(net)) == expected
    with pytest.raises(ValueError, match=r"'2\.weight', which is no parameter or buffer"):
        Removal({"2.weight": {0: (0,)}}).shapes(net)
    with pytest.raises(ValueError, match=r"axis 1 of '0\.bias', whose shape is \(8,\)"):
        Removal({"0.bias": {1: (0,)}}).shapes(net)


def chain(chance: random.Random, first: int, second: int) -> Removal:
    """A random removal of both hidden widths of the network below, in random order."""
    a = tuple(chance.sample(range(first), chance.randint(1, first)))
    b = tuple(chance.sample(range(second), chance.randint(1, second)))
    kept = {"0.weight": {0: a}, "0.bias": {0: a}, "1.weight": {0: b, 1: a}, "1.bias": {0: b}, "2.weight": {1: b}}
    return Removal(kept, {"": {"tag": chance.randint(0, 99)}}, {"2.weight": chance.choice([0.5, 2.0, -4.0])})


@given(st.integers(0, 10_000))
def test_two_removals_are_one(seed: int) -> None:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    one = nn.Sequential(nn.Linear(2, 7), nn.Linear(7, 6), nn.Linear(6, 3))
    one.tag = 0
    two = copy.deepcopy(one)
    a = chain(chance, 7, 6)
    b = chain(chance, len(a.kept["0.bias"][0]), len(a.kept["1.bias"][0]))
    c = chain(chance, len(b.kept["0.bias"][0]), len(b.kept["1.bias"][0]))
    for removal in (a, b, c):
        remove(one, removal)
    remove(two, a.then(b).then(c))
    assert a.then(b).then(c) == a.then(b.then(c))
    assert a.then(Removal()) == a == Removal().then(a)
    assert repr(one) == repr(two)
    assert one.tag == two.tag == c.attributes[""]["tag"]
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_later_removal_cannot_keep_what_is_gone() -> None:
    with pytest.raises(ValueError, match="axis 0 of 'w': the later removal keeps position 2, the earlier one leaves 2"):
        Removal({"w": {0: (3, 5)}}).then(Removal({"w": {0: (2,)}}))
