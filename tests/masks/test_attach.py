"""Which optimizers hold masks, what a copy of the model is, and who keeps whom alive."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD

from secateur.model import registry
from secateur.model.masks import find_masks
from secateur.train.plan import Plan
from secateur.train.pruner import Pruner
from tests.masks.nets import (
    Oracle,
    expect_equal,
    expect_removed,
    loss_of,
    make_batches,
    make_net,
    mask_model,
    random_unit_masks,
)

MOMENTUM = partial(SGD, lr=0.1, momentum=0.9)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int = 0) -> None:
    loss_of(model, make_batches(number + 1)[number]).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_deepcopy_is_plain_and_the_original_stays_tracked() -> None:
    model = make_net()
    unit_masks = random_unit_masks(model)
    oracle = Oracle(model, unit_masks, MOMENTUM)
    masks = mask_model(model, unit_masks)
    twin = copy.deepcopy(model)
    expect_equal(twin, model)
    assert find_masks(twin) is None
    assert find_masks(model) is masks
    optimizer = MOMENTUM(twin.parameters())
    with pytest.raises(ValueError, match=r"SGD holds none of the masked parameters .*A copy made by deepcopy"):
        masks.attach(optimizer)
    step(twin, optimizer)
    assert torch.count_nonzero(twin[4].weight[~unit_masks["4.weight"]]) > 0, "an untracked copy trains densely"
    twin.load_state_dict(make_net(1).state_dict())
    expect_equal(twin, make_net(1))

    mine = MOMENTUM(model.parameters())
    masks.attach(mine)
    step(model, mine)
    expect_removed(model, unit_masks)
    loss_of(oracle.model, make_batches(1)[0]).backward()
    oracle.step()
    expect_equal(model, oracle.model)


def test_a_copied_optimizer_has_no_hooks() -> None:
    """So that nobody masks a model through a copy by accident; the original's hooks stay."""
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    optimizer = MOMENTUM(model.parameters())
    masks.attach(optimizer)
    twin_model, twin = copy.deepcopy((model, optimizer))
    step(twin_model, twin)
    assert torch.count_nonzero(twin_model[4].weight[~masks["4.weight"]]) > 0
    masks.check()


def test_an_optimizer_without_masked_parameters_is_refused() -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    with pytest.raises(ValueError, match=r"SGD holds none of the masked parameters \(0\.weight, 4\.weight, 6\.weight"):
        masks.attach(SGD([model[4].bias, model[1].weight], lr=0.1))


def test_attaching_twice_does_nothing_and_detaching_frees() -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    optimizer = MOMENTUM(model.parameters())
    calls: list[str] = []
    masks.attach(optimizer, after=lambda: calls.append("own"))
    masks.attach(optimizer)
    step(model, optimizer)
    assert calls == ["own"]
    masks.detach()
    step(model, optimizer)
    assert calls == ["own"]


def test_the_pruner_takes_over_an_optimizer_that_only_held_masks() -> None:
    """Without that its clock would stand still, silently."""
    model = make_net()
    pruner = Pruner(model, Plan(sparsity=0.5, begin=2))
    optimizer = MOMENTUM(model.parameters())
    pruner.masks.attach(optimizer)
    pruner.attach(optimizer)
    for number in range(3):
        step(model, optimizer, number)
    assert pruner.clock == 3
    assert pruner.masks.shares().units == pytest.approx(0.5, abs=0.01)
    pruner.masks.check()


def test_a_replaced_module_is_named() -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    head = model[6]
    model[6] = nn.Linear(7, 10)
    model[6].weight.grad = torch.ones(10, 7)
    for use in (masks.apply, masks.check, masks.undo, masks.mask_gradients):
        with pytest.raises(
            ValueError, match=r"'6\.weight' has shape \(10, 7\), its mask \(3, 7\): a module was replaced"
        ):
            use()
    model[6] = nn.Identity()
    with pytest.raises(ValueError, match=r"no parameter '6\.weight' any more; a module was replaced"):
        masks.apply()
    model[6] = head
    masks.check()


def test_masks_do_not_keep_their_model_alive() -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    optimizer = MOMENTUM(model.parameters())
    masks.attach(optimizer)
    step(model, optimizer)
    alive, entries = weakref.ref(model), len(registry._MASKS)
    del model
    gc.collect()
    assert alive() is None
    assert len(registry._MASKS) == entries - 1
    for use in (masks.apply, masks.check, masks.undo, masks.shares, optimizer.step):
        with pytest.raises(ValueError, match="the model of these masks has been deleted"):
            use()
    assert masks.kept("0.weight") == int(masks["0.weight"].sum()), "the masks themselves can still be read"


def test_masks_do_not_keep_optimizers_alive_and_die_with_the_model() -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    optimizer = MOMENTUM(model.parameters())
    masks.attach(optimizer)
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None
    masks.update(random_unit_masks(model, seed=9))
    alive = weakref.ref(masks)
    del masks
    gc.collect()
    assert alive() is find_masks(model), "the table holds them"
    del model
    gc.collect()
    assert alive() is None
