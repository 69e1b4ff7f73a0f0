"""A network with two groups, a tied one, and their plans."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.model.removal import Removal

H = W = 5


class Net(nn.Module):
    """Convolution, batch norm, ReLU, flatten, linear: two groups, the filters and the hidden units."""

    def __init__(self, channels: int = 4, hidden: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.fc1 = nn.Linear(channels * 9, hidden)
        self.fc2 = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.norm(self.conv(x)).relu().flatten(1)).relu())


def make(seed: int = 0, **sizes: int) -> Net:
    torch.manual_seed(seed)
    net = Net(**sizes).double()
    for tensor in (net.norm.weight, net.norm.bias, net.norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(net.norm.running_var, 0.5, 2.0)
    return net.eval()


def plan(channels: tuple[int, ...], hidden: tuple[int, ...]) -> Removal:
    columns = tuple(c * 9 + i for c in channels for i in range(9))
    kept = {f"conv.{n}": {0: channels} for n in ("weight", "bias")}
    kept |= {f"norm.{n}": {0: channels} for n in ("weight", "bias", "running_mean", "running_var")}
    kept |= {"fc1.weight": {0: hidden, 1: columns}, "fc1.bias": {0: hidden}, "fc2.weight": {1: hidden}}
    return Removal(kept)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("view", self.embed.weight.detach(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


GOOD = plan((0, 2), (1,))
