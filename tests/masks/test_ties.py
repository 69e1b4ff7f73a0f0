"""Tied parameters: one tensor, one mask, whatever name it is called by."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from secateur.core.units import parse_unit
from secateur.model.masked import masked
from secateur.model.masks import Masks
from secateur.train.prune import prune
from secateur.types import KeyLayout
from tests.masks.nets import Oracle, expect_equal, expect_removed

WEIGHT, _ = parse_unit("weight")


class Tied(nn.Module):
    """An autoencoder of two layers that share their square weight, and a third of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.decoder(torch.tanh(self.encoder(inputs))))


def layout(*names: str) -> dict[str, KeyLayout]:
    return {name: KeyLayout((6, 6)) for name in names}


def some_mask(seed: int = 0) -> Tensor:
    return torch.rand(6, 6, generator=torch.Generator().manual_seed(seed)) < 0.5


def test_both_names_with_one_mask_are_one_mask() -> None:
    model = Tied()
    both = ("decoder.weight", "encoder.weight")
    masks = Masks(model, {name: some_mask() for name in both}, WEIGHT, layout(*both))
    assert list(masks) == ["encoder.weight"]
    masks.apply()
    assert torch.equal(model.decoder.weight != 0, some_mask())
    assert masks.shares().target_weights == pytest.approx(1 - float(some_mask().float().mean()))


def test_the_second_name_alone_is_found() -> None:
    model = Tied()
    masks = Masks(model, {"decoder.weight": some_mask()}, WEIGHT, layout("decoder.weight"))
    masks.apply()
    assert torch.equal(model.encoder.weight != 0, some_mask())
    masks.undo()
    expect_equal(model, Tied())


def test_conflicting_masks_are_refused() -> None:
    model = Tied()
    given = {"encoder.weight": some_mask(0), "decoder.weight": some_mask(1)}
    with pytest.raises(ValueError, match=r"'encoder\.weight' and 'decoder\.weight' are the same tensor \(tied\)"):
        Masks(model, given, WEIGHT, layout(*given))
    expect_equal(model, Tied())


def test_prune_counts_a_tied_weight_once_and_refuses_half_of_it() -> None:
    model = Tied()
    masks = prune(model, 0.5)
    assert list(masks) == ["encoder.weight", "head.weight"]
    assert sum(masks.kept(name) for name in masks) == 24, "36 + 12 weights, each counted once"
    masks.undo()
    with pytest.raises(ValueError, match=r"'encoder\.weight' is targeted and 'decoder\.weight' is excluded"):
        prune(model, 0.5, targets=["encoder.weight", "head.weight"], exclude="decoder.weight")
    expect_equal(model, Tied())


def test_training_a_tied_model() -> None:
    model = Tied()
    make = partial(SGD, lr=0.1, momentum=0.9)
    oracle = Oracle(model, {"encoder.weight": some_mask()}, make)
    assert oracle.model.decoder.weight is oracle.model.encoder.weight
    masks = Masks(model, {"encoder.weight": some_mask()}, WEIGHT, layout("encoder.weight"))
    masks.apply()
    optimizer = make(model.parameters())
    masks.attach(optimizer)
    for seed in range(3):
        inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
        for net in (model, oracle.model):
            net(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        expect_removed(model, oracle.masks)
        oracle.step()
    expect_equal(model, oracle.model)
    assert model.decoder.weight is model.encoder.weight


def test_masked_blocks_under_two_names_restore_the_first_values() -> None:
    model = Tied()
    with masked(model, {"encoder.weight": some_mask(0), "decoder.weight": some_mask(1)}):
        assert torch.equal(model.encoder.weight != 0, some_mask(0) & some_mask(1))
    expect_equal(model, Tied())


def test_a_tie_that_is_cut_after_pruning_leaves_the_mask_at_the_first_name() -> None:
    """Names are resolved at every use: the second name is another tensor now, and dense."""
    model = Tied()
    masks = prune(model, 0.5)
    with torch.no_grad():
        model.decoder.weight = nn.Parameter(torch.ones(6, 6))
    masks.apply()
    masks.check()
    assert torch.count_nonzero(model.decoder.weight) == 36
    untied = copy.deepcopy(model)
    assert torch.equal(untied.encoder.weight != 0, masks["encoder.weight"])
