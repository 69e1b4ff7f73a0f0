"""Channels go back where they were, and only from where they were brought."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import secateur as sc


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 3)]
    return nn.Sequential(*layers).double()


def _same(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_channels_go_back_once_and_the_last_permutation_first() -> None:
    model, x = _net(), torch.randn(4, 6).double()
    states = [copy.deepcopy(model.state_dict())]
    first = sc.permute_channels(model, sc.NM(2, 4), example_inputs=x)
    states.append(copy.deepcopy(model.state_dict()))
    second = sc.permute_channels(model, sc.NM(1, 2), example_inputs=x)
    states.append(copy.deepcopy(model.state_dict()))
    assert first.orders
    assert second.orders
    with pytest.raises(ValueError, match="1 later permute_channels of this model still stand: undo the last one first"):
        first.undo()
    assert _same(model, states[2])
    second.undo()
    with pytest.raises(ValueError, match="undone already"):
        second.undo()
    assert _same(model, states[1])
    first.undo()
    assert _same(model, states[0])


def test_a_model_that_lost_channels_since_is_told_so() -> None:
    model, x = _net(), torch.randn(4, 6).double()
    done = sc.permute_channels(model, sc.NM(2, 4), example_inputs=x)
    sc.shrink(model, example_inputs=x, units={"3.weight": [1, 4]}, inplace=True)
    small = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"axis 0 of '3\.weight' had 10 positions .* 8 now.*undo before shrinking"):
        done.undo()
    assert _same(model, small)


@pytest.mark.parametrize(("criterion", "said"), [("random", "reads noise"), ("movement", "reads init")])
def test_scores_that_do_not_move_along_are_refused(criterion: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"criterion='{criterion}' {said}.*'magnitude' or 'ria'"):
        sc.permute_channels(_net(), example_inputs=torch.randn(4, 6).double(), criterion=criterion)
