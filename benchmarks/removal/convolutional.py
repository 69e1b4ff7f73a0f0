"""Convolutional networks of published shape, for the benchmarks of removal: ResNet, DenseNet, MobileNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DenseNet", "MobileNetV1", "MobileNetV2", "ResNet", "conv_bn"]


def conv_bn(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = None
) -> nn.Sequential:
    """Convolution without bias, batch norm, and maybe an activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act(inplace=True)] if act else []))


class _Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); the shortcut projects where the shape changes."""

    def __init__(self, branch: nn.Sequential, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet for 224x224 images (He et al. 2016, arXiv 1512.03385), stride on the 3x3 convolution.

    Args:
        depths: blocks of the four stages; (3, 4, 6, 3) with bottlenecks is ResNet-50, (2, 2, 2, 2) without ResNet-18.
        bottleneck: blocks of three convolutions, four times as wide at the end.
        classes: of the classifier.
    """

    def __init__(self, depths: tuple[int, ...], bottleneck: bool, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = []
        inputs = 64
        for stage, depth in enumerate(depths):
            width = 64 << stage
            outputs = width * 4 if bottleneck else width
            for block in range(depth):
                stride = 2 if stage and not block else 1
                if bottleneck:
                    layers = [
                        *conv_bn(inputs, width, 1, act=nn.ReLU),
                        *conv_bn(width, width, 3, stride, act=nn.ReLU),
                        *conv_bn(width, outputs, 1),
                    ]
                else:
                    layers = [*conv_bn(inputs, width, 3, stride, act=nn.ReLU), *conv_bn(width, outputs, 3)]
                blocks.append(_Residual(nn.Sequential(*layers), inputs, outputs, stride))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class _DenseLayer(nn.Module):
    """``growth`` new channels from everything before it in its block."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = torch.cat(features, 1)
        return self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class _DenseBlock(nn.Module):
    def __init__(self, inputs: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_DenseLayer(inputs + i * growth, growth) for i in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """DenseNet-121 (Huang et al. 2017, arXiv 1608.06993).

    Args:
        depths: layers of the dense blocks.
        growth: channels that each layer adds.
        classes: of the classifier.
    """

    def __init__(self, depths: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32, classes: int = 1000) -> None:
        super().__init__()
        width = 2 * growth
        layers: list[nn.Module] = [conv_bn(3, width, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
        for block, depth in enumerate(depths):
            if block:
                half = nn.Conv2d(width, width // 2, 1, bias=False)
                layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), half, nn.AvgPool2d(2)]
                width //= 2
            layers.append(_DenseBlock(width, growth, depth))
            width += growth * depth
        self.features = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        return self.head(F.relu(self.norm(self.features(x))).mean((2, 3)))


class MobileNetV1(nn.Module):
    """Depthwise and pointwise convolutions in turn (Howard et al. 2017, arXiv 1704.04861)."""

    plan = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, 32, 3, 2, act=nn.ReLU)]
        inputs = 32
        for outputs, stride in self.plan:
            layers.append(conv_bn(inputs, inputs, 3, stride, groups=inputs, act=nn.ReLU))
            layers.append(conv_bn(inputs, outputs, 1, act=nn.ReLU))
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        return self.head(self.features(x).mean((2, 3)))


class _Inverted(nn.Module):
    """Widen, filter per channel, narrow; added to the input where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        width = inputs * expand
        widen = [conv_bn(inputs, width, 1, act=nn.ReLU6)] if expand > 1 else []
        self.branch = nn.Sequential(
            *widen, conv_bn(width, width, 3, stride, groups=width, act=nn.ReLU6), conv_bn(width, outputs, 1)
        )
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.added else self.branch(x)


class MobileNetV2(nn.Module):
    """Inverted residuals (Sandler et al. 2018, arXiv 1801.04381); rows: expansion, outputs, blocks, stride."""

    plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, 32, 3, 2, act=nn.ReLU6)]
        inputs = 32
        for expand, outputs, blocks, stride in self.plan:
            for block in range(blocks):
                layers.append(_Inverted(inputs, outputs, 1 if block else stride, expand))
                inputs = outputs
        layers.append(conv_bn(inputs, 1280, 1, act=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        return self.head(self.features(x).mean((2, 3)))
