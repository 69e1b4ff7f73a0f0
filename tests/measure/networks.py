"""The networks of catalogue A 9, written out from their descriptions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CifarResNet", "conv_names", "lenet5_caffe", "lenet_300_100", "mask_of", "vgg16"]


def lenet_300_100() -> nn.Sequential:
    layers = (nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    return nn.Sequential(nn.Flatten(), *layers)


def lenet5_caffe() -> nn.Sequential:
    convs = (nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2))
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))


def mask_of(weight: Tensor, kept: int) -> Tensor:
    """The first ``kept`` elements stay."""
    return (torch.arange(weight.numel()) < kept).view(weight.shape)


class _Block(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs)
        self.conv2, self.bn2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs)
        self.extra = outs - ins
        self.shortcut: nn.Module | None = None
        if option == "B" and ins != outs:
            self.shortcut = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.extra:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """n blocks per stage, 6 n + 2 layers; option A: padded shortcut, B: 1x1 convolution."""

    def __init__(self, n: int, option: str = "A") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        blocks, ins = [], 16
        for outs in (16, 32, 64):
            for _ in range(n):
                blocks.append(_Block(ins, outs, 1 if ins == outs else 2, option))
                ins = outs
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def vgg16(head: tuple[int, ...], pooled: int, norm: bool = False) -> nn.Sequential:
    """The 13 convolutions, and linear layers ``head`` on ``pooled`` x ``pooled`` positions of 512 channels."""
    layers: list[nn.Module] = []
    ins = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(ins, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
        ins = width
    layers.append(nn.Flatten())
    sizes = (512 * pooled * pooled, *head)
    for i, width in enumerate(head):
        layers += [nn.Linear(sizes[i], width), nn.ReLU()]
    return nn.Sequential(*layers)


def conv_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
