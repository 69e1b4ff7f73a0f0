"""Files whose masks are of coupled groups: they load again, take no more room, and lies in them are refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.core.unit_channel import Channel
from secateur.deploy import load, save
from secateur.io import Bundle, read_contents
from secateur.io.members import member_json, parse_members, runs_of
from secateur.model.masks import Masks, find_masks, register_masks
from secateur.types import Member
from tests.deploy.net import expect_state, state_of
from tests.io.forge import edited, hurt, record_of, same_bytes, split
from tests.oracles.channel_nets import CHAIN, Chain, parameters_of


def masked_chain(spec: str = "out", seed: int = 0, density: float = 0.5) -> tuple[Chain, Masks]:
    net = Chain(seed)
    layout = parameters_of(CHAIN, net)
    generator = torch.Generator().manual_seed(seed)
    units = {group: torch.rand(key.shape, generator=generator) < density for group, key in layout.items()}
    masks = Masks(net, units, Channel(spec), layout)  # type: ignore[arg-type]
    masks.apply()
    register_masks(net, masks)
    return net, masks


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    save(masked_chain()[0], tmp_path / "content")
    return (tmp_path / "content").read_bytes()


@pytest.mark.parametrize("spec", ["out", "all"])
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_a_loaded_model_is_the_saved_one_with_its_groups(tmp_path: Path, spec: str, density: float) -> None:
    model, masks = masked_chain(spec, density=density)
    save(model, tmp_path / "m")
    target = Chain(9)
    load(tmp_path / "m", into=target)
    expect_state(target, state_of(model))
    back = find_masks(target)
    assert back is not None
    assert back.unit == masks.unit
    assert back.layout == masks.layout
    assert all(torch.equal(back[name], masks[name]) for name in masks)
    assert all(torch.equal(back.unit_masks[group], masks.unit_masks[group]) for group in CHAIN)
    load(tmp_path / "m", into=target)  # the same masks once more
    bundle = load(tmp_path / "m")
    assert isinstance(bundle, Bundle)
    assert (bundle.unit, bundle.layout) == (masks.unit.spec, masks.layout)
    assert all(same_bytes(tensor, model.state_dict()[name]) for name, tensor in bundle.tensors.items())


def test_other_masks_of_the_module_are_not_overwritten(tmp_path: Path) -> None:
    save(masked_chain(seed=1)[0], tmp_path / "m")
    target, _ = masked_chain(seed=2)
    before = state_of(target)
    with pytest.raises(ValueError, match="the module has other masks already"):
        load(tmp_path / "m", into=target)
    expect_state(target, before)


def test_only_files_with_groups_need_the_newer_format(tmp_path: Path, content: bytes) -> None:
    assert record_of(split(content)[0])["format"] == 2
    save(Chain(), tmp_path / "dense")
    assert record_of(split((tmp_path / "dense").read_bytes())[0])["format"] == 1


def test_the_table_of_contents_counts_every_byte_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    contents = read_contents(tmp_path / "m")
    assert sum(info.stored_bytes for info in contents.tensors.values()) == len(split(content)[1])
    assert contents.tensors["bn.running_mean"].kept is None
    masks = masked_chain()[1]
    assert {name: contents.tensors[name].kept for name in masks} == {name: masks.kept(name) for name in masks}


def test_regrown_weights_are_refused(tmp_path: Path) -> None:
    model, masks = masked_chain()
    with torch.no_grad():
        model.bn.bias += 1.0
    with pytest.raises(ValueError, match=r"'bn\.bias' are no longer zero"):
        save(model, tmp_path / "m")
    with pytest.raises(ValueError, match=r"tensor bn\.bias: \d elements that its mask removes"):
        save(model.state_dict(), tmp_path / "m", masks=masks)
    with pytest.raises(ValueError, match=r"group fc1\.weight has the member fc1\.bias|come without a tensor"):
        save({name: t for name, t in Chain().state_dict().items() if name != "fc1.bias"}, tmp_path / "m", masks=masks)


@given(st.lists(st.integers(-1, 5), max_size=30))
def test_runs_say_the_owner_of_every_position(owner: list[int]) -> None:
    member = Member("w", (2, len(owner)), 1, "in", tuple(owner))
    assert parse_members([member_json(member)], 6, "group g") == (member,)


def test_regular_owners_take_one_run() -> None:
    assert runs_of(range(4096)) == [[0, 4096, 1, 1]]
    assert runs_of([i // 49 for i in range(49 * 512)]) == [[0, 512, 49, 1]]
    assert runs_of([-1] * 8 + list(range(8))) == [[-1, 1, 8, 0], [0, 8, 1, 1]]
    shuffled = [i * 4 + g for g in range(4) for i in range(16)]
    assert runs_of(shuffled) == [[g, 16, 1, 4] for g in range(4)]
    assert runs_of([h for _ in range(3) for h in range(64)]) == [[0, 64, 1, 1]] * 3


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(record: dict[str, Any]) -> None:
        place: Any = record
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return edit


FC1 = ("layout", "fc1.weight")
BIAS = (*FC1, "members", 1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(*FC1, "members", value=[]), r"group fc1\.weight has no list of members"),
        (put(*FC1, "shape", value=[2, 4]), "a group of shape"),
        (put(*FC1, "shape", value=[9]), "are not those of its coupled groups"),
        (put(*FC1, "shape", value=[7]), r"member 'fc1\.weight' of group fc1\.weight does not say the unit"),
        (put(*FC1, "kind", value="linear"), "does not have exactly the keys"),
        (put(*BIAS, "name", value="fc2.bias"), r"disagree about \['fc2\.bias', 'fc1\.bias'\]"),
        (put(*BIAS, "name", value=3), r"member 3 of group"),
        (put(*BIAS, "dim", value=1), r"axis 1 of shape \(8,\)"),
        (put(*BIAS, "part", value="top"), "part 'top'"),
        (put(*BIAS, "shape", value=[2**27]), "have more than 67108864 positions"),
        (put(*BIAS, "shape", value=[8, 1]), r"disagree about \['fc1\.bias'"),
        (put(*BIAS, "owner", value=[[0, 8, 1]]), "does not say the unit of each of 8"),
        (put(*BIAS, "owner", value=[[0, 8, 1, 2]]), "does not say the unit"),
        (put(*BIAS, "owner", value=[[-1, 8, 1, 1]]), "does not say the unit"),
        (put(*BIAS, "owner", value=[[0, 2**60, 1, 0]]), "does not say the unit"),
        (put(*BIAS, "owner", value=[[0, 0, 1, 0], [0, 8, 1, 1]]), "does not say the unit"),
        (put("units", value={}), "disagree about the tensors"),
        (put("unit", value=None), "not expanded from a unit"),
        (put("unit", value="filter"), "no group weight"),
        (put("tensors", "fc1.bias", "expand", value=False), "not expanded from a unit"),
        (put("format", value=3), "format version 3 is newer than 2"),
    ],
)
def test_records_that_contradict_themselves(
    tmp_path: Path, content: bytes, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    (tmp_path / "f").write_bytes(edited(content, edit))
    target = Chain(3)
    before = state_of(target)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "f", into=target)
    expect_state(target, before)
    assert find_masks(target) is None


@pytest.mark.parametrize("alone", [True, False])
def test_all_members_of_a_file_share_one_limit(tmp_path: Path, content: bytes, alone: bool) -> None:
    wide = {"name": "x", "shape": [1 << 26], "dim": 0, "part": "in", "owner": [[0, 1, 8, 0]]}

    def edit(record: dict[str, Any]) -> None:
        if alone:  # in the last group, behind other groups
            record["layout"]["fc1.weight"]["members"] = [wide]
        else:  # in the first group, behind other members
            record["layout"]["conv1.weight"]["members"].append(wide)

    (tmp_path / "f").write_bytes(edited(content, edit))
    with pytest.raises(ValueError, match="have more than 67108864 positions"):
        load(tmp_path / "f")


def test_malice_with_a_fitting_digest_leaves_the_module_alone(tmp_path: Path, content: bytes) -> None:
    refused = 0
    for seed in range(200):
        chance = random.Random(seed)
        target = Chain(3)
        before = state_of(target)

        def edit(record: dict[str, Any], chance: random.Random = chance) -> None:
            hurt(chance, record["layout"])

        (tmp_path / "f").write_bytes(edited(content, edit))
        try:
            load(tmp_path / "f", into=target, max_bytes=1 << 20)
        except ValueError:
            refused += 1
            expect_state(target, before)
            assert find_masks(target) is None
    assert refused > 150
