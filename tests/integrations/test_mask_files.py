"""Masks in a file of their own: they come back for every unit, and nothing foreign is believed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.integrations.mask_files import (
    MASKS_FILE,
    layout_record,
    load_masks,
    parse_layout,
    read_masks,
    save_masks,
)
from secateur.io import Bundle, read, write
from secateur.model.masks import Masks
from tests.masks.nets import expect_equal, make_net

KEY = "secateur.masks"


def pruned(**options: Any) -> tuple[nn.Module, Masks]:
    net = make_net().eval()
    return net, sc.prune(net, **{"sparsity": 0.6, **options})


def example_of(net: nn.Module) -> torch.Tensor:
    for side in range(4, 16):
        x = torch.randn(2, 3, side, side)
        try:
            net(x)
        except RuntimeError:
            continue
        return x
    raise AssertionError("no image fits this net")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sparsity": 0.0},
        {"sparsity": 0.99},
        {"unit": "filter"},
        {"unit": "row"},
        {"unit": "2 of 4", "sparsity": None},
    ],
    ids=str,
)
def test_masks_of_every_unit_come_back(options: dict[str, Any], tmp_path: Path) -> None:
    net, masks = pruned(**options)
    size = save_masks(masks, tmp_path)
    assert size == (tmp_path / MASKS_FILE).stat().st_size
    again = make_net()
    again.load_state_dict(net.state_dict())
    loaded = load_masks(again, tmp_path)
    assert sc.find_masks(again) is loaded
    assert loaded.unit == masks.unit
    assert loaded.layout == masks.layout
    assert set(loaded) == set(masks)
    assert all(torch.equal(loaded[name], masks[name]) for name in masks)
    assert all(torch.equal(loaded.unit_masks[key], mask) for key, mask in masks.unit_masks.items())


def test_masks_of_coupled_channels_come_back_and_shrink(tmp_path: Path) -> None:
    net = make_net().eval()
    x = example_of(net)
    masks = sc.prune(net, 0.5, unit="channel", example_inputs=x, allocation="uniform")
    save_masks(masks, tmp_path / "channels.safetensors")
    again = make_net().eval()
    again.load_state_dict(net.state_dict())
    loaded = load_masks(again, tmp_path / "channels.safetensors")
    assert loaded.layout == masks.layout
    small = sc.shrink(again, example_inputs=x)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    torch.testing.assert_close(small(x), net(x), atol=1e-5, rtol=1e-4)


def test_masks_go_on_other_weights_only_where_that_is_asked_for(tmp_path: Path) -> None:
    _, masks = pruned()
    save_masks(masks, tmp_path)
    other = make_net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    start = copy.deepcopy(other)
    with pytest.raises(ValueError, match="are not zero where these masks remove them"):
        load_masks(other, tmp_path)
    assert sc.find_masks(other) is None
    expect_equal(other, start)
    loaded = load_masks(other, tmp_path, apply=True)
    loaded.check()
    for name in masks:
        assert torch.equal(other.get_parameter(name), torch.where(masks[name], start.get_parameter(name), 0)), name
    with pytest.raises(ValueError, match="already has masks"):
        load_masks(other, tmp_path)
    loaded.undo()
    expect_equal(other, start)


def test_masks_of_another_model_are_refused(tmp_path: Path) -> None:
    save_masks(pruned()[1], tmp_path)
    with pytest.raises(ValueError, match=f"{MASKS_FILE}: .*no such parameter"):
        load_masks(nn.Linear(3, 2), tmp_path)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    net, _ = pruned()
    with pytest.raises(FileNotFoundError, match=r"there is no such file\. Masks are written by"):
        load_masks(net, tmp_path)
    sc.save(net, tmp_path / MASKS_FILE)
    with pytest.raises(ValueError, match=r"is read by secateur\.load"):
        read_masks(tmp_path)


def test_it_is_small(tmp_path: Path) -> None:
    net = nn.Linear(400, 400)
    size = save_masks(sc.prune(net, sparsity=0.9), tmp_path)
    assert size < 400 * 400 * 0.55 / 8 + 1500


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The file again, with checksums that fit, after somebody edited its record."""
    bundle = read(path)
    record = copy.deepcopy(dict(bundle.record or {}))
    change(record[KEY])
    write(path, Bundle(bundle.tensors, record=record))


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *way, last, value = path

    def change(record: dict[str, Any]) -> None:
        for step in way:
            record = record[step]
        record[last] = value

    return change


LAST = "6.weight"
"""The last layer of the net."""


@pytest.mark.parametrize(
    "change",
    [
        _set("unit", 3),
        _set("unit", "spiral"),
        _set("layout", []),
        _set("layout", LAST, {"shape": [1]}),
        _set("layout", LAST, "kind", "magic"),
        _set("layout", LAST, "shape", [3, -7]),
        _set("layout", LAST, "shape", [3, True]),
        _set("layout", LAST, "shape", [7, 7]),
        _set("layout", LAST, "groups", 0),
        _set("layout", LAST, "members", 4),
        _set("layout", LAST, "members", [{"name": "x"}]),
        _set("codes", LAST, "coding", "zip"),
        _set("codes", LAST, "count", 99),
        _set("codes", LAST, "shape", [1 << 30, 1 << 30]),
        _set("codes", LAST, {"shape": [1 << 20, 1 << 20], "coding": "rice", "side": "kept", "count": 0}),
        _set("codes", "extra", {}),
        _set("more", 1),
    ],
)  # fmt: skip
def test_an_edited_record_is_refused(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    net, masks = pruned()
    save_masks(masks, tmp_path)
    changed(tmp_path / MASKS_FILE, change)
    again = make_net()
    again.load_state_dict(net.state_dict())
    with pytest.raises(ValueError, match=MASKS_FILE):
        load_masks(again, tmp_path)
    assert sc.find_masks(again) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dim", 5),
        ("owner", [0]),
        ("owner", [9, 9, 9]),
        ("owner", ["a", "b"]),
        ("part", "up"),
        ("name", 3),
        ("shape", "wide"),
    ],
)  # fmt: skip
def test_an_edited_member_is_refused(name: str, value: Any) -> None:
    net = make_net().eval()
    record = layout_record(sc.prune(net, 0.5, unit="channel", example_inputs=example_of(net)).layout)
    assert layout_record(parse_layout(record)) == record
    group = next(iter(record))
    record[group]["members"][0][name] = value
    with pytest.raises(ValueError, match="altered"):
        parse_layout(record)
