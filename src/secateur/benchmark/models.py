"""The few networks that the demo and the benchmarks need, written plainly."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CifarResNet", "LeNet5", "ResNet20", "ResNet56", "Residual", "lenet_300_100"]


def lenet_300_100(inputs: int = 784, classes: int = 10) -> nn.Sequential:
    """LeNet-300-100 (LeCun et al. 1998): two hidden layers; 266,610 parameters on 28x28 images.

    Example:
        >>> sum(p.numel() for p in lenet_300_100().parameters())
        266610
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


class LeNet5(nn.Module):
    """A LeNet-5-like network: two convolutions with pooling, then two linear layers.

    On 28x28 images it is the Caffe version (5x5 kernels without padding, 431,080 parameters); on small
    images the kernels are 3x3 with padding, so that something is left to pool.

    Args:
        size: height and width of the image.
        classes: number of classes.
        channels: of the input.
    """

    def __init__(self, size: int = 28, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        small = size < 16
        kernel, padding = (3, 1) if small else (5, 0)
        self.conv1 = nn.Conv2d(channels, 20, kernel, padding=padding)
        self.conv2 = nn.Conv2d(20, 50, kernel, padding=padding)
        side = size
        for _ in range(2):
            side = (side + 2 * padding - kernel + 1) // 2
        self.fc1 = nn.Linear(50 * side * side, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class _Block(nn.Module):
    """relu(bn(conv)), bn(conv), plus the shortcut, relu; ``shortcut`` maps channels and stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Residual(nn.Module):
    """A small residual network, widths 32-64-128, one block each; about 308 k parameters.

    Example:
        >>> sum(p.numel() for p in Residual().parameters())
        308074
    """

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        blocks: list[nn.Module] = [_Block(32, 32, 1, nn.Identity())]
        for inputs, outputs in ((32, 64), (64, 128)):
            project = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))
            blocks.append(_Block(inputs, outputs, 2, project))
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes]."""
        return self.linear(self.blocks(self.stem(x)).mean((2, 3)))


class _PaddedShortcut(nn.Module):
    """Option A of He et al. 2016: every second pixel, zero channels padded on both sides; no parameters."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added // 2))


class CifarResNet(nn.Module):
    """A residual network for CIFAR with option A shortcuts (He et al. 2016, arXiv 1512.03385).

    Args:
        depth: 20 (269,722 parameters), 56 (853,018), or another ``6 n + 2``.
        classes: number of classes.

    Raises:
        ValueError: for another depth.

    Example:
        >>> [sum(p.numel() for p in CifarResNet(depth).parameters()) for depth in (20, 56)]
        [269722, 853018]
    """

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth={depth}: these networks have 6 n + 2 layers, such as 20, 32, 56")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, 32, 32] to logits [N, classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


ResNet20 = partial(CifarResNet, 20)
"""``ResNet20()`` makes ResNet-20 with option A."""
ResNet56 = partial(CifarResNet, 56)
"""``ResNet56()`` makes ResNet-56 with option A."""


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    first = nn.Identity() if inputs == outputs else _PaddedShortcut(outputs - inputs)
    rest = [_Block(outputs, outputs, 1, nn.Identity()) for _ in range(blocks - 1)]
    return nn.Sequential(_Block(inputs, outputs, stride, first), *rest)
