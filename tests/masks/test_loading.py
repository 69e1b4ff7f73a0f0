"""load_state_dict into a pruned model, and checkpoints of masks."""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from secateur.model.masks import Masks
from secateur.train.plan import Plan
from secateur.train.pruner import Pruner
from tests.masks.nets import (
    expect_equal,
    expect_removed,
    loss_of,
    make_batches,
    make_net,
    mask_model,
    random_unit_masks,
)

MOMENTUM = partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint in safe mode would bring it back: plain tensors and containers only."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_pruning_leaves_the_keys_of_the_state_dict_alone() -> None:
    model, dense = make_net(), make_net()
    mask_model(model, random_unit_masks(model))
    assert list(model.state_dict()) == list(dense.state_dict())
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())
    assert dense.load_state_dict(model.state_dict(), strict=True).missing_keys == []
    expect_equal(dense, model)


@pytest.mark.parametrize("assign", [False, True])
def test_a_dense_checkpoint_is_masked_and_undo_gives_its_values(assign: bool) -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    loaded = make_net(seed=8)
    result = model.load_state_dict(copy.deepcopy(loaded.state_dict()), strict=True, assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    expect_removed(model, dict(masks))
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name)[mask], loaded.get_parameter(name)[mask])
    masks.undo()
    expect_equal(model, loaded)


def test_a_pruned_checkpoint_does_not_wipe_out_what_undo_would_restore() -> None:
    model = make_net()
    dense = copy.deepcopy(model)
    masks = mask_model(model, random_unit_masks(model))
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    masks.undo()
    expect_equal(model, dense)


def test_a_pruned_part_of_a_larger_model_is_masked_when_the_larger_one_loads() -> None:
    part = make_net()
    whole = nn.ModuleDict({"body": part, "head": nn.Linear(3, 2)})
    masks = mask_model(part, random_unit_masks(part))
    other = nn.ModuleDict({"body": make_net(1), "head": nn.Linear(3, 2)})
    whole.load_state_dict(other.state_dict())
    masks.check()
    masks.undo()
    expect_equal(part, other["body"])


def test_loading_a_part_of_a_pruned_model_is_seen_by_check_and_by_the_next_step() -> None:
    """The hook stands at the model that was pruned: loading into one of its layers passes it by."""
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    optimizer = MOMENTUM(model.parameters())
    masks.attach(optimizer)
    model[4].load_state_dict(make_net(8)[4].state_dict())
    with pytest.raises(ValueError, match=r"removed weights of '4\.weight' are no longer zero"):
        masks.check()
    optimizer.step()
    masks.check()


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, partial(torch.compile, backend="eager")], ids=["parallel", "compile"]
)
def test_loading_through_a_wrapper(wrap: Any) -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    wrapped = wrap(model)
    wrapped.load_state_dict(wrap(make_net(8)).state_dict())
    masks.check()


def test_a_layer_that_was_compiled_after_pruning_keeps_its_mask() -> None:
    model = make_net()
    unit_masks = random_unit_masks(model)
    masks = mask_model(model, unit_masks)
    model[4] = torch.compile(model[4], backend="eager")
    with torch.no_grad():
        model[4].weight.fill_(1.0)
    masks.apply()
    expect_removed(model, unit_masks)
    assert "4.weight " in str(masks), "the summary finds it too"


def test_removing_the_masks_removes_the_load_hook() -> None:
    model = make_net()
    mask_model(model, random_unit_masks(model)).undo()
    assert not model._load_state_dict_post_hooks
    model.load_state_dict(make_net(8).state_dict())
    expect_equal(model, make_net(8))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for batch in make_batches(last)[first:]:
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("undo", [True, False])
def test_masks_resume_bit_by_bit(undo: bool) -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model), undo=undo)
    optimizer = AdamW(model.parameters(), lr=0.01)
    masks.attach(optimizer)
    train(model, optimizer, 0, 3)
    state = through_a_file(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "masks": masks.state_dict()}
    )
    train(model, optimizer, 3, 6)

    again = make_net(4)
    theirs = mask_model(again, random_unit_masks(again, seed=11, density=0.6))
    resumed = AdamW(again.parameters(), lr=0.01)
    theirs.attach(resumed)
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    theirs.load_state_dict(state["masks"])
    assert all(torch.equal(theirs[name], masks[name]) for name in masks)
    train(again, resumed, 3, 6)
    expect_equal(again, model)
    if undo:
        masks.undo()
        theirs.undo()
        expect_equal(again, model)
    else:
        with pytest.raises(ValueError, match="the removed values are gone"):
            theirs.undo()


def test_masks_of_a_checkpoint_in_another_order() -> None:
    model = make_net()
    unit_masks = random_unit_masks(model)
    masks = mask_model(model, unit_masks)
    state = masks.state_dict()
    state["units"] = dict(reversed(state["units"].items()))
    masks.load_state_dict(state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    masks.apply()
    for name, mask in unit_masks.items():
        assert torch.equal(model.get_parameter(name) == 1, mask)


def test_values_that_were_loaded_in_place_are_not_overwritten() -> None:
    """Distributed checkpoints write into the parameters; no load hook runs."""
    model, loaded = make_net(), make_net(8)
    unit_masks = random_unit_masks(loaded, seed=5)
    state = mask_model(loaded, unit_masks).state_dict()
    masks = mask_model(model, random_unit_masks(model, seed=6))
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
            mine.copy_(theirs)
        for mine, theirs in zip(model.buffers(), loaded.buffers(), strict=True):
            mine.copy_(theirs)
    masks.load_state_dict(state)
    expect_equal(model, loaded)


def test_a_checkpoint_of_other_masks_is_refused() -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    other = make_net()
    state = mask_model(other, random_unit_masks(other, "filter"), "filter").state_dict()
    with pytest.raises(ValueError, match=r"by unit 'filter'; these masks are of .* by unit 'weight'"):
        masks.load_state_dict(state)
    few = dict(list(random_unit_masks(other).items())[:1])
    state = mask_model(make_net(2), few).state_dict()
    with pytest.raises(ValueError, match=r"this checkpoint masks \['0\.weight'\]"):
        masks.load_state_dict(state)


PLAN = Plan(sparsity=0.8, schedule="cubic", begin=0, end=6, every=2)


def start(seed: int) -> tuple[nn.Module, Pruner, torch.optim.Optimizer]:
    model = make_net(seed)
    pruner = Pruner(model, PLAN)
    optimizer = MOMENTUM(model.parameters())
    pruner.attach(optimizer)
    return model, pruner, optimizer


@pytest.mark.parametrize("steps", [3, 4])
def test_a_pruner_resumes_bit_by_bit_in_the_middle_of_its_schedule(steps: int) -> None:
    """In a script that builds and attaches everything first, so that a fresh pruner has already pruned."""
    model, pruner, optimizer = start(0)
    train(model, optimizer, 0, steps)
    state = through_a_file(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict()}
    )
    train(model, optimizer, steps, 8)
    again, theirs, resumed = start(4)
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    theirs.load_state_dict(state["pruner"])
    train(again, resumed, steps, 8)
    expect_equal(again, model)
    assert theirs.history == pruner.history
    assert isinstance(theirs.masks, Masks)
    assert theirs.masks.shares() == pruner.masks.shares()
    assert pruner.masks.shares().units == pytest.approx(0.8, abs=0.01)
    for masks in (pruner.masks, theirs.masks):
        masks.undo()
    expect_equal(again, model)
