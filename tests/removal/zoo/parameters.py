"""Weights that are no plain layer's: shared, tied, raw, reparametrized, frozen, or reached through another call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

__all__ = [
    "CalledTwice",
    "EinsumNet",
    "PartlyFrozen",
    "ScaledNet",
    "SoftParametrized",
    "TiedAutoencoder",
    "TiedLanguageModel",
    "WeightNormNet",
    "WeightNormWavenet",
]


class Scale(nn.Module):
    """A learned factor whose shape is given when it is made."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class ScaledNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.scale1 = Scale(shape=(16, 1, 1))
        self.conv2 = nn.Conv2d(16, 20, 3, padding=1)
        self.scale2 = Scale(shape=(1, 20, 1, 1))
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.fc = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.scale1(self.conv1(x)))
        x = F.relu(self.scale2(self.conv2(x))) * self.temperature
        return self.fc(x.mean((-2, -1)))


class CalledTwice(nn.Module):
    """One convolution (and its BN) used at two depths; a block used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.shared = nn.Conv2d(16, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(2):
            x = F.relu(self.bn(self.shared(x)))
        x = x.mean((2, 3))
        return self.fc(self.mlp(self.mlp(x).relu()))


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.e1 = nn.Linear(30, 24)
        self.e2 = nn.Linear(24, 12)
        self.b1 = nn.Parameter(torch.zeros(24))
        self.b0 = nn.Parameter(torch.zeros(30))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.e2(torch.relu(self.e1(x))))
        h = torch.relu(F.linear(z, self.e2.weight.t(), self.b1))
        return F.linear(h, self.e1.weight.t(), self.b0)


class TiedLanguageModel(nn.Module):
    """The output layer is the embedding: one Parameter under two names."""

    def __init__(self, vocabulary: int = 40, dim: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim, padding_idx=0)
        self.position = nn.Parameter(0.5 * torch.randn(1, 32, dim))
        self.fc1 = nn.Linear(dim, 24)
        self.fc2 = nn.Linear(24, dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position[:, : ids.shape[1]]
        x = x + self.fc2(F.gelu(self.fc1(x)))
        return self.head(x)


class EinsumNet(nn.Module):
    """Raw parameters with einsum, matmul, ``@`` and a stored bias."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(0.5 * torch.randn(16, 3))
        self.mix_bias = nn.Parameter(torch.zeros(16))
        self.kernel = nn.Parameter(0.1 * torch.randn(20, 16, 3, 3))
        self.w1 = nn.Parameter(0.3 * torch.randn(20, 24))
        self.w2 = nn.Parameter(0.3 * torch.randn(24, 12))
        self.w3 = nn.Parameter(0.3 * torch.randn(10, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bchw,dc->bdhw", x, self.mix) + self.mix_bias[None, :, None, None]
        x = F.relu(F.conv2d(F.relu(x), self.kernel, padding=1)).mean((2, 3))
        x = F.relu(x @ self.w1)
        x = F.relu(torch.matmul(x, self.w2))
        return torch.einsum("bi,oi->bo", x, self.w3)


class WeightNormNet(nn.Module):
    """weight_norm on layers whose inputs stay, or whose readers are plain."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = parametrizations.weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.conv2 = nn.Conv2d(16, 20, 3, padding=1)
        self.fc1 = nn.Linear(20, 24)
        self.fc2 = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x)).mean((2, 3))
        return self.fc2(F.relu(self.fc1(x)))


class WeightNormWavenet(nn.Module):
    """weight_norm on every layer: a norm over the inputs changes when an input goes, unless the gain makes up."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(4, 16, 1)
        self.filter = parametrizations.weight_norm(nn.Conv1d(16, 32, 3, padding=1))
        self.skip = parametrizations.weight_norm(nn.Conv1d(16, 16, 1))
        self.mid = nn.Conv1d(16, 20, 1)
        self.end = nn.Conv1d(20, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        a, b = self.filter(x).chunk(2, dim=1)
        x = x + self.skip(torch.tanh(a) * torch.sigmoid(b))
        return self.end(F.relu(self.mid(F.relu(x))))


class Squashed(nn.Module):
    """A parametrization that works weight by weight."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.tanh(weight) * 1.5


class SoftParametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 24)
        self.fc2 = nn.Linear(24, 16)
        self.fc3 = nn.Linear(16, 10)
        parametrize.register_parametrization(self.fc1, "weight", Squashed())
        parametrize.register_parametrization(self.fc2, "weight", Squashed())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class PartlyFrozen(nn.Module):
    """A frozen backbone under a trained head; the backbone runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU()
        )
        self.backbone.requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 10))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features.mean((2, 3)).detach())
