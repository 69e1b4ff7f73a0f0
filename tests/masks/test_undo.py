"""Nothing is destroyed silently: undo, commit, and masks for the length of a block."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD

from secateur.model.masked import masked
from secateur.model.masks import Masks, find_masks
from secateur.train.prune import prune
from tests.masks.nets import (
    expect_equal,
    expect_removed,
    loss_of,
    make_batches,
    make_net,
    mask_model,
    random_unit_masks,
)

MOMENTUM = partial(SGD, lr=0.1, momentum=0.9)


def awkward() -> nn.Module:
    """Values that a careless undo loses: negative zero, infinities, nan, subnormal numbers."""
    model = make_net()
    with torch.no_grad():
        model[4].weight[0, :6] = torch.tensor([-0.0, float("inf"), float("-inf"), float("nan"), 1e-42, 0.0])
    return model


def bits(model: nn.Module) -> dict[str, list[int]]:
    return {name: p.detach().view(torch.int32).flatten().tolist() for name, p in model.named_parameters()}


@pytest.mark.parametrize("unit", ["weight", "kernel", "block(2, 2)", "filter"])
def test_undo_is_exact_to_the_bit(unit: str) -> None:
    model = awkward()
    before = bits(model)
    unit_masks = random_unit_masks(model, unit)
    unit_masks["4.weight"].view(-1)[0] = False
    masks = mask_model(model, unit_masks, unit)
    expect_removed(model, dict(masks))
    assert find_masks(model) is masks
    masks.undo()
    assert bits(model) == before
    assert find_masks(model) is None


def test_undo_after_training_keeps_what_was_learned_and_detaches() -> None:
    model = make_net()
    dense = copy.deepcopy(model)
    unit_masks = random_unit_masks(model)
    masks = mask_model(model, unit_masks)
    optimizer = MOMENTUM(model.parameters())
    masks.attach(optimizer)
    for batch in make_batches(3):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = copy.deepcopy(model)
    masks.undo()
    for name, mask in unit_masks.items():
        now = model.get_parameter(name)
        assert torch.equal(now[~mask], dense.get_parameter(name)[~mask])
        assert torch.equal(now[mask], trained.get_parameter(name)[mask])
        assert not torch.equal(now[mask], dense.get_parameter(name)[mask])
    loss_of(model, make_batches(1)[0]).backward()
    optimizer.step()
    for name, mask in unit_masks.items():
        assert torch.count_nonzero(model.get_parameter(name)[~mask]) == int((~mask).sum()), "dense training goes on"


def test_undo_after_several_updates_restores_every_value_that_ever_left() -> None:
    model = make_net()
    dense = copy.deepcopy(model)
    masks = mask_model(model, random_unit_masks(model, seed=1, density=0.8))
    for seed in range(2, 6):
        unit_masks = random_unit_masks(model, seed=seed, density=0.5)
        masks.update(unit_masks)
        expect_removed(model, unit_masks)
        for name, mask in unit_masks.items():
            assert torch.equal(model.get_parameter(name)[mask], dense.get_parameter(name)[mask])
    masks.undo()
    expect_equal(model, dense)


def test_pruning_further_and_undo() -> None:
    model = make_net()
    dense = copy.deepcopy(model)
    first = prune(model, 0.3)
    gone = {name: ~first[name] for name in first}
    second = prune(model, 0.7)
    assert second is first
    assert second.shares().units == pytest.approx(0.7, abs=0.005)
    assert all(bool((~second[name])[gone[name]].all()) for name in gone), "what left before stays away"
    second.undo()
    expect_equal(model, dense)


def test_commit_frees_the_values_and_undo_is_refused() -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    after = copy.deepcopy(model)
    masks.commit()
    with pytest.raises(ValueError, match=r"the removed values are gone \(commit\(\) was called"):
        masks.undo()
    assert find_masks(model) is masks, "the masks stay"
    masks.check()
    expect_equal(model, after)
    assert masks.state_dict()["removed"] is None


def test_masks_made_without_undo_refuse_it_and_keep_nothing() -> None:
    model = make_net()
    masks = prune(model, 0.5, undo=False)
    with pytest.raises(ValueError, match="undo=False"):
        masks.undo()
    assert masks.state_dict()["removed"] is None
    masks.update({name: torch.ones_like(masks[name]) for name in masks})
    assert torch.count_nonzero(model[4].weight) < model[4].weight.numel(), "values that are gone come back as zeros"


def test_a_copy_is_pruned_and_the_original_is_not_touched() -> None:
    model, dense = make_net(), make_net()
    pruned, masks = prune(model, 0.5, inplace=False)
    expect_equal(model, dense)
    assert find_masks(model) is None
    assert find_masks(pruned) is masks
    expect_removed(pruned, dict(masks))
    masks.undo()
    expect_equal(pruned, dense)


def test_a_mask_of_the_wrong_shape_or_name_changes_nothing() -> None:
    model, dense = make_net(), make_net()
    masks = Masks(model, random_unit_masks(model), *_unit_and_layout(model))
    with pytest.raises(ValueError, match=r"mask for '4\.weight' has shape \(3, 3\).* needs \(7, 45\)"):
        masks.update({"0.weight": torch.zeros(5, 3, 3, 3, dtype=torch.bool), "4.weight": torch.ones(3, 3)})
    with pytest.raises(ValueError, match=r"mask for 'nowhere'"):
        masks.update({"nowhere": torch.ones(3, 3)})
    with pytest.raises(ValueError, match=r"mask for 'nowhere': Sequential has no such parameter"):
        Masks(model, {"nowhere": torch.ones(3, 3)}, *_unit_and_layout(model))
    expect_equal(model, dense)


def _unit_and_layout(model: nn.Module) -> tuple[object, object]:
    masks = mask_model(copy.deepcopy(model), random_unit_masks(model))
    return masks.unit, masks.layout


def test_masked_blocks_nest_and_restore() -> None:
    model = awkward()
    before = bits(model)
    outer, inner = random_unit_masks(model, seed=1), random_unit_masks(model, seed=2)
    with masked(model, outer) as same:
        assert same is model
        expect_removed(model, outer)
        between = bits(model)
        with masked(model, inner):
            expect_removed(model, outer)
            expect_removed(model, inner)
        assert bits(model) == between
    assert bits(model) == before
    assert find_masks(model) is None


def test_masked_blocks_restore_after_exceptions() -> None:
    model = make_net()
    before = bits(model)
    outer, inner = random_unit_masks(model, seed=1), random_unit_masks(model, seed=2)

    def fail_inside() -> None:
        with masked(model, outer), masked(model, inner):
            raise KeyError("in the block")

    with pytest.raises(KeyError, match="in the block"):
        fail_inside()
    assert bits(model) == before

    def fail_at_the_door() -> None:
        with masked(model, outer), masked(model, {"4.weight": torch.ones(2, 2, dtype=torch.bool)}):
            pass

    with pytest.raises(ValueError, match=r"mask for '4\.weight' has shape \(2, 2\), the parameter \(7, 45\)"):
        fail_at_the_door()
    assert bits(model) == before


def test_masked_blocks_keep_what_was_trained_inside() -> None:
    model = make_net()
    dense = copy.deepcopy(model)
    mask = random_unit_masks(model)
    with masked(model, mask), torch.no_grad():
        model[4].weight.add_(1.0)
    kept, removed = mask["4.weight"], ~mask["4.weight"]
    assert torch.equal(model[4].weight[kept], dense[4].weight[kept] + 1.0)
    assert torch.equal(model[4].weight[removed], dense[4].weight[removed])


def test_masked_takes_masks_of_a_pruned_model_on_another() -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    other, dense = make_net(4), make_net(4)
    with masked(other, masks):
        expect_removed(other, dict(masks))
    expect_equal(other, dense)


def test_undone_masks_do_nothing_any_more() -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    masks.undo()
    before = bits(model)
    uses = (masks.apply, masks.check, masks.undo, masks.mask_gradients, masks.after_load)
    for use in (*uses, lambda: masks.attach(MOMENTUM(model.parameters())), lambda: masks.update({})):
        with pytest.raises(ValueError, match="these masks were undone"):
            use()
    assert bits(model) == before
    assert "Masks of" in repr(masks)
