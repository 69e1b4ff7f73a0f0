"""Small networks, masks that nobody chose cleverly, and the oracle: the same training with masks held by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.core.units import parse_unit
from secateur.model.masks import Masks, register_masks
from secateur.model.names import parameters_by_name
from secateur.model.targets import find_targets


def make_net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Convolution, batch norm and linear layers of odd sizes, from standard modules alone."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(7, 3)).to(dtype)


def make_batches(count: int, size: int = 6, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(size, 3, 5, 5, generator=generator).to(dtype),
            torch.randint(3, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def random_unit_masks(model: nn.Module, unit: str = "weight", density: float = 0.4, seed: int = 3) -> dict[str, Tensor]:
    parsed, _ = parse_unit(unit)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(parsed.grid(key), generator=generator) < density for name, key in find_targets(model).items()
    }


def mask_model(model: nn.Module, unit_masks: dict[str, Tensor], unit: str = "weight", *, undo: bool = True) -> Masks:
    """Registered, applied masks; no criterion is involved."""
    layout = {name: key for name, key in find_targets(model, unit="weight").items() if name in unit_masks}
    masks = Masks(model, unit_masks, parse_unit(unit)[0], layout, undo=undo)
    register_masks(model, masks)
    masks.apply()
    return masks


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1])


@final
class Oracle:
    """A plain copy of a model; its masks are bool tensors that the test holds by hand."""

    def __init__(self, model: nn.Module, masks: dict[str, Tensor], make: Callable[[Iterator[nn.Parameter]], Optimizer]):
        self.model = copy.deepcopy(model)
        self.masks = masks
        self.optimizer = make(self.model.parameters())
        self.hold_weights()

    def hold_weights(self) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self.masks:
                parameter.data = torch.where(self.masks[name], parameter.data, torch.zeros_like(parameter.data))

    def hold_gradients(self) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self.masks and parameter.grad is not None:
                parameter.grad = torch.where(self.masks[name], parameter.grad, torch.zeros_like(parameter.grad))

    def step(self) -> None:
        self.hold_gradients()
        self.optimizer.step()
        self.hold_weights()
        self.optimizer.zero_grad()


def expect_removed(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Every removed weight is exactly zero, and some are removed."""
    parameters = parameters_by_name(model)
    for name, mask in masks.items():
        assert not bool(mask.all()), f"nothing is removed from {name}; the test would be empty"
        assert torch.count_nonzero(parameters[name].detach()[~mask]) == 0, name


def expect_equal(model: nn.Module, oracle: nn.Module) -> None:
    """All parameters and buffers, bit by bit."""
    state, expected = model.state_dict(), oracle.state_dict()
    assert list(state) == list(expected)
    for name, value in state.items():
        assert torch.equal(value, expected[name]), f"{name} differs by {(value - expected[name]).abs().max():.3g}"
