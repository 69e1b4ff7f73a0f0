"""Unusual ways in and out: keywords, dictionaries, records, wrappers, and a branch on data."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.removal.zoo.convolutional import ConvBNReLU, PlainCNN

__all__ = ["Branching", "Detector", "TwoTowers", "compiled", "data_parallel", "distributed"]


class Boxes(NamedTuple):
    """What a detection head says of each place."""

    scores: Tensor
    offsets: Tensor


class Detector(nn.Module):
    """Returns features that are outputs as well: they must keep their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"c1": ConvBNReLU(3, 12), "c2": ConvBNReLU(12, 16, stride=2)})
        self.lateral = nn.Conv2d(16, 8, 1)
        self.tower = nn.Sequential(nn.Conv2d(8, 20, 3, padding=1), nn.ReLU())
        self.scores = nn.Conv2d(20, 4, 1)
        self.offsets = nn.Conv2d(20, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Boxes]]:
        features: OrderedDict[str, Tensor] = OrderedDict()
        for name, layer in self.body.items():
            x = layer(x)
            features[name] = x
        x = self.lateral(features["c2"])
        tower = self.tower(x)
        return {"features": x, "boxes": [Boxes(self.scores(tower), self.offsets(tower))]}


class TwoTowers(nn.Module):
    """Two inputs by keyword, one of them optional, and a dictionary out."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(ConvBNReLU(3, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 24))
        self.words = nn.Embedding(40, 12)
        self.text = nn.Linear(12, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, *, pixels: Tensor, ids: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        joint = torch.relu(self.image(pixels))
        if ids is not None:
            joint = joint * torch.tanh(self.text(self.words(ids).mean(1)))
        return {"logits": self.head(joint) * scale, "probabilities": self.head(joint).softmax(-1)}


class Branching(nn.Module):
    """Which layer runs depends on the values: of the input, or of channels that might go."""

    def __init__(self, on: str) -> None:
        super().__init__()
        self.on = on
        self.fc1 = nn.Linear(12, 24)
        self.left = nn.Linear(24, 16)
        self.right = nn.Linear(24, 16)
        self.fc2 = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.fc1(x))
        high = x.mean() > 0 if self.on == "input" else h.mean() > 0.35
        x = self.left(h) if high else self.right(h)
        return self.fc2(F.relu(x))


def data_parallel() -> nn.Module:
    """A wrapper that puts ``module.`` before every name; without a GPU it calls the module in place."""
    return nn.DataParallel(PlainCNN())


def distributed() -> nn.Module:
    """DistributedDataParallel itself; a process group of one has to be there."""
    return nn.parallel.DistributedDataParallel(PlainCNN())


def compiled() -> nn.Module:
    """``_orig_mod.`` before every name; no code is generated."""
    model = torch.compile(PlainCNN(), backend="eager")
    assert isinstance(model, nn.Module)
    return model
