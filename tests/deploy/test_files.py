from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.core.units import parse_unit
from secateur.deploy import load, save
from secateur.io import Bundle, read_contents
from secateur.model.masks import Masks, find_masks
from secateur.train import prune
from secateur.types import KeyLayout
from tests.deploy.net import LAYOUT, UNITS, expect_state, make_net, mask_net, state_of, train_statistics
from tests.io.forge import same_bytes


@pytest.mark.parametrize("spec", UNITS)
def test_a_loaded_model_is_the_saved_one_bit_for_bit(tmp_path: Path, spec: str) -> None:
    model = make_net()
    masks = mask_net(model, spec)
    train_statistics(model)
    assert save(model, tmp_path / "m") == (tmp_path / "m").stat().st_size
    target = make_net(seed=9)
    parameters = [id(parameter) for parameter in target.parameters()]
    assert load(str(tmp_path / "m"), into=target) is target
    expect_state(target, state_of(model))
    assert [id(parameter) for parameter in target.parameters()] == parameters
    back = find_masks(target)
    assert back is not None
    assert back.unit.spec == masks.unit.spec
    assert all(torch.equal(back[name], masks[name]) for name in masks)
    assert all(torch.equal(back.unit_masks[name], masks.unit_masks[name]) for name in masks)
    target.eval()
    x = torch.randn(4, 3, 8, 8)
    assert same_bytes(target(x), model(x))


def test_a_factory_and_a_plain_dense_model_work(tmp_path: Path) -> None:
    model = make_net()
    save(model, tmp_path / "m", plan={"sparsity": 0.0}, record={"a": [1, None, "x"]})
    target = load(tmp_path / "m", into=lambda: make_net(3))
    expect_state(target, state_of(model))
    assert find_masks(target) is None
    bundle = load(tmp_path / "m")
    assert isinstance(bundle, Bundle)
    assert (bundle.masks, bundle.plan, bundle.record) == ({}, {"sparsity": 0.0}, {"a": [1, None, "x"]})


def test_without_a_target_a_bundle_comes_back_with_expanded_zeros(tmp_path: Path) -> None:
    model = make_net()
    masks = mask_net(model, "filter")
    save(model, tmp_path / "m")
    bundle = load(tmp_path / "m")
    assert isinstance(bundle, Bundle)
    assert bundle.unit == "filter"
    assert bundle.layout == LAYOUT
    assert torch.equal(bundle.masks["0.weight"], masks.unit_masks["0.weight"])
    assert same_bytes(bundle.tensors["0.weight"], model.state_dict()["0.weight"])
    assert read_contents(tmp_path / "m").tensors["0.weight"].kept == int(masks.unit_masks["0.weight"].sum()) * 27


def test_a_sparse_file_is_smaller(tmp_path: Path) -> None:
    model = nn.Linear(500, 500)
    dense = save(model, tmp_path / "dense")
    unit, _ = parse_unit("weight")
    mask = torch.rand(500, 500, generator=torch.Generator().manual_seed(0)) < 0.1
    masks = Masks(model, {"weight": mask}, unit, {"weight": KeyLayout((500, 500))})
    masks.apply()
    assert save(model, tmp_path / "sparse", masks=masks) < 0.14 * dense


def test_trained_on_without_masks_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    model = make_net()
    mask_net(model)
    save(model, tmp_path / "m")
    before = (tmp_path / "m").read_bytes()
    with torch.no_grad():
        model[0].weight += 1.0
    with pytest.raises(ValueError, match=r"removed weights of '0\.weight' are no longer zero"):
        save(model, tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == before


def test_masks_given_for_a_copy_are_held_against_the_copy(tmp_path: Path) -> None:
    import copy

    model = make_net()
    masks = mask_net(model)
    average = copy.deepcopy(model)
    assert save(average, tmp_path / "ema", masks=masks) == save(model, tmp_path / "m")
    with torch.no_grad():
        average[5].weight += 1.0
    with pytest.raises(ValueError, match=r"tensor 5\.weight: \d+ elements that its mask removes are not zero"):
        save(average, tmp_path / "ema", masks=masks)


def test_masks_go_on_after_loading(tmp_path: Path) -> None:
    model = make_net()
    mask_net(model)
    save(model, tmp_path / "m")
    target = load(tmp_path / "m", into=make_net(2))
    masks = find_masks(target)
    assert masks is not None
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1, momentum=0.9)
    masks.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        target(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    masks.check()
    assert not same_bytes(target[0].weight.detach(), model[0].weight.detach())
    with pytest.raises(ValueError, match="the removed values are gone"):
        masks.undo()


def test_the_best_checkpoint_goes_back_into_the_model_that_made_it(tmp_path: Path) -> None:
    model = make_net()
    masks = mask_net(model)
    best = state_of(model)
    save(model, tmp_path / "best")
    with torch.no_grad():
        model[0].weight *= 2
    load(tmp_path / "best", into=model)
    expect_state(model, best)
    assert find_masks(model) is masks


@pytest.mark.parametrize("other", ["no masks", "other masks", "other unit"])
def test_a_model_with_other_masks_is_refused(tmp_path: Path, other: str) -> None:
    source, target = make_net(), make_net(3)
    if other != "no masks":
        mask_net(source, "filter" if other == "other unit" else "weight", seed=2)
    save(source, tmp_path / "m")
    masks = mask_net(target)
    before = state_of(target)
    with pytest.raises(ValueError, match="has other masks already"):
        load(tmp_path / "m", into=target)
    expect_state(target, before)
    assert find_masks(target) is masks


class Tied(nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50, bias=False)
        if tie:
            self.head.weight = self.embed.weight


def test_tied_parameters_stay_tied_and_are_stored_once(tmp_path: Path) -> None:
    model = Tied()
    assert save(model, tmp_path / "m") < 50 * 16 * 4 + 1000
    target = Tied()
    load(tmp_path / "m", into=target)
    assert target.head.weight is target.embed.weight
    assert same_bytes(target.head.weight.detach(), model.embed.weight.detach())
    untied = load(tmp_path / "m", into=Tied(tie=False))
    assert same_bytes(untied.head.weight.detach(), model.embed.weight.detach())
    assert same_bytes(untied.embed.weight.detach(), model.embed.weight.detach())


def test_a_target_that_ties_what_differs_is_refused(tmp_path: Path) -> None:
    save(Tied(tie=False), tmp_path / "m")
    target = Tied()
    before = state_of(target)
    with pytest.raises(ValueError, match=r"ties 'embed\.weight' and 'head\.weight', which differ in the file"):
        load(tmp_path / "m", into=target)
    expect_state(target, before)


def test_wrappers_leave_no_trace_in_the_names(tmp_path: Path) -> None:
    model = make_net()
    save(nn.DataParallel(model), tmp_path / "a")
    assert "0.weight" in read_contents(tmp_path / "a").tensors
    compiled = torch.compile(make_net(4))
    assert load(tmp_path / "a", into=compiled) is compiled
    expect_state(compiled._orig_mod, state_of(model))


def test_a_mapping_and_records_with_to_record_can_be_saved(tmp_path: Path) -> None:
    from secateur.records import SchedulePoint

    save({"a": torch.arange(3)}, tmp_path / "m", record=SchedulePoint(1, 0.5, 2))
    bundle = load(tmp_path / "m")
    assert isinstance(bundle, Bundle)
    assert (bundle.tensors["a"].tolist(), bundle.record) == ([0, 1, 2], {"step": 1, "sparsity": 0.5, "kept": 2})


def test_a_copy_of_a_pruned_model_is_saved_dense_and_that_is_said(tmp_path: Path) -> None:
    net = nn.Linear(40, 40)
    prune(net, 0.9)
    with pytest.warns(UserWarning, match=r"90 % of the weights are zero, but this model has no masks"):
        large = save(copy.deepcopy(net), tmp_path / "copy.safetensors")
    assert large > 2 * save(net, tmp_path / "net.safetensors")
