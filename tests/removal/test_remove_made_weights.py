"""Weights that parametrizations and hooks make: sliced by their originals."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from secateur.model.removal import Removal, remove

Kept = dict[str, dict[int, tuple[int, ...]]]


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / 2


def zeroed(layer: nn.Module, name: str, keep: list[int]) -> None:
    with torch.no_grad():
        weight = dict(layer.named_parameters())[name]
        gone = [i for i in range(len(weight)) if i not in keep]
        weight[gone] = 0


def old_style(function: Any, layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(layer)


PATH = "parametrizations.weight"


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (parametrizations.weight_norm, {f"{PATH}.original0": {0: (0, 3)}, f"{PATH}.original1": {0: (0, 3)}}),
        (lambda c: old_style(nn.utils.weight_norm, c), {"weight_g": {0: (0, 3)}, "weight_v": {0: (0, 3)}}),
        (
            lambda c: parametrize.register_parametrization(c, "weight", Doubled()) or c,
            {f"{PATH}.original": {0: (0, 3)}},
        ),
        (lambda c: prune.l1_unstructured(c, "weight", 0.3), {"weight_orig": {0: (0, 3)}, "weight_mask": {0: (0, 3)}}),
    ],
    ids=["weight_norm", "old weight_norm", "own", "torch prune"],
)
def test_made_weights_follow_their_originals(make: Callable[[nn.Module], nn.Module], kept: Kept) -> None:
    torch.manual_seed(0)
    layer = make(nn.Conv2d(2, 4, 3))
    x = torch.randn(1, 2, 4, 4)
    expected = layer(x)[:, [0, 3]]
    remove(layer, Removal({**kept, "bias": {0: (0, 3)}}))
    assert layer.out_channels == 2
    assert layer.weight.shape == (2, 2, 3, 3)
    assert torch.allclose(layer(x), expected, atol=1e-6)
    assert layer.training


@pytest.mark.parametrize("new", [True, False])
def test_spectral_norm_moves_its_vectors_along(new: bool) -> None:
    torch.manual_seed(0)
    layer = (
        parametrizations.spectral_norm(nn.Linear(5, 4)) if new else old_style(nn.utils.spectral_norm, nn.Linear(5, 4))
    )
    weight, u = (f"{PATH}.original", f"{PATH}.0._u") if new else ("weight_orig", "weight_u")
    layer(torch.randn(2, 5))
    zeroed(layer, weight, [0, 3])
    layer.eval()
    x = torch.randn(2, 5)
    expected = layer(x)[:, [0, 3]]
    kept = {weight: {0: (0, 3)}, "bias": {0: (0, 3)}}
    layer.train()
    vectors = {name: tensor.clone() for name, tensor in layer.named_buffers()}
    with pytest.raises(ValueError, match="its tensors no longer fit together"):
        remove(layer, Removal(kept))
    assert all(torch.equal(tensor, vectors[name]) for name, tensor in layer.named_buffers())
    remove(layer, Removal({**kept, u: {0: (0, 3)}}))
    assert torch.allclose(layer.eval()(x), expected, atol=1e-6)
    assert layer.out_features == 2


def test_looking_at_a_made_weight_takes_no_step_and_no_random_number() -> None:
    class Noisy(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + torch.randn_like(weight)

    layer = nn.Linear(3, 4)
    parametrize.register_parametrization(layer, "weight", Noisy(), unsafe=True)
    state = torch.get_rng_state()
    remove(layer, Removal({f"{PATH}.original": {0: (1,)}, "bias": {0: (1,)}}))
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.parametrizations.weight[0].training
