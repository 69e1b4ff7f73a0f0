"""Small networks and data of the recovery tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.train.loop.fit import fit
from secateur.train.loop.snapshot import Snapshot
from secateur.train.loop.training import Training

__all__ = ["blobs", "convolutions", "counts", "mlp", "state", "trained", "training"]


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def convolutions(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def blobs(samples: int = 48, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(samples) % 3
    shape = shape or (6,)
    return torch.randn(samples, *shape, generator=generator) + y.reshape(-1, *[1] * len(shape)), y


def training(epochs: int = 4, **others: object) -> Training:
    chosen = {"optimizer": "sgd", "lr": 0.1, "lr_schedule": "steps(0.5, 0.75)", "weight_decay": 0.01}
    chosen |= {"batch_size": 16, "loss": F.cross_entropy}
    return Training(epochs, **{**chosen, **others})  # type: ignore[arg-type]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained(step: int = 0, epochs: int = 2, **others: object) -> tuple[nn.Sequential, Training, Snapshot]:
    """A network, how it was trained, and the snapshot of a step."""
    net, given = mlp(), training(epochs, **others)
    return net, given, fit(net, blobs(), given, keep=(step,), progress=False).snapshots[step]


def counts(net: nn.Module) -> dict[str, int]:
    masks = sc.find_masks(net)
    assert masks is not None
    return {name: masks.kept(name) for name in masks}
