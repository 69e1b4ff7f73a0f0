"""A small network with two maskable weights, and what the tests of files ask of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.units import parse_unit
from secateur.model.masks import Masks, register_masks
from secateur.types import KeyLayout
from tests.io.forge import same_bytes

LAYOUT = {
    "0.weight": KeyLayout((8, 3, 3, 3), "conv", 1, "first"),
    "5.weight": KeyLayout((5, 32), "linear", 1, "output"),
}
UNITS = ["weight", "row", "column", "kernel", "filter", "in_channel", "block(2, 3)", "layer"]


def make_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )


def mask_net(model: nn.Module, spec: str = "weight", density: float = 0.4, seed: int = 1) -> Masks:
    unit, _ = parse_unit(spec)
    generator = torch.Generator().manual_seed(seed)
    units = {name: torch.rand(unit.grid(key), generator=generator) < density for name, key in LAYOUT.items()}
    masks = Masks(model, units, unit, LAYOUT)
    masks.apply()
    register_masks(model, masks)
    return masks


def train_statistics(model: nn.Module) -> None:
    model.train()
    with torch.no_grad():
        model(torch.randn(16, 3, 8, 8))
    model.eval()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def expect_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert list(found) == list(state)
    assert [name for name in state if not same_bytes(found[name], state[name])] == []
