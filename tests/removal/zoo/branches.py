"""Networks that concatenate, split, shuffle or slice channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.removal.zoo.convolutional import ConvBNReLU

__all__ = ["DenseNet", "Inception", "PixelShuffleNet", "ShuffleNet", "SlicedNet", "SqueezeNet", "UNet"]


class DenseLayer(nn.Module):
    def __init__(self, inp: int, growth: int, bn_size: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inp)
        self.conv1 = nn.Conv2d(inp, bn_size * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bn_size * growth)
        self.conv2 = nn.Conv2d(bn_size * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        out = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(out)))


class DenseBlock(nn.Module):
    def __init__(self, layers: int, inp: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DenseLayer(inp + i * growth, growth, 2) for i in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Concatenations of concatenations, BN over each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.block1 = DenseBlock(3, 8, 6)
        self.norm = nn.BatchNorm2d(26)
        self.transition = nn.Conv2d(26, 12, 1, bias=False)
        self.block2 = DenseBlock(2, 12, 6)
        self.norm5 = nn.BatchNorm2d(24)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.conv0(x))
        x = F.avg_pool2d(self.transition(F.relu(self.norm(x))), 2)
        x = F.relu(self.norm5(self.block2(x)), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class DoubleConv(nn.Sequential):
    def __init__(self, inp: int, out: int) -> None:
        super().__init__(ConvBNReLU(inp, out), ConvBNReLU(out, out))


class UNet(nn.Module):
    """Skips by concatenation, up by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.inc = DoubleConv(3, 8)
        self.down1 = DoubleConv(8, 12)
        self.down2 = DoubleConv(12, 16)
        self.up1 = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.conv1 = DoubleConv(24, 12)
        self.up2 = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.conv2 = DoubleConv(16, 8)
        self.outc = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(F.max_pool2d(x1, 2))
        x3 = self.down2(F.max_pool2d(x2, 2))
        x = self.up1(x3)
        dy, dx = x2.size(2) - x.size(2), x2.size(3) - x.size(3)
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        x = self.conv1(torch.cat([x2, x], dim=1))
        x = self.conv2(torch.cat([x1, self.up2(x)], dim=1))
        return self.outc(x)


class InceptionBlock(nn.Module):
    def __init__(self, inp: int) -> None:
        super().__init__()
        self.branch1 = ConvBNReLU(inp, 8, 1)
        self.branch2 = nn.Sequential(ConvBNReLU(inp, 6, 1), ConvBNReLU(6, 10, 3))
        self.branch3_1 = ConvBNReLU(inp, 6, 1)
        self.branch3_2a = nn.Conv2d(6, 6, (1, 3), padding=(0, 1))
        self.branch3_2b = nn.Conv2d(6, 8, (3, 1), padding=(1, 0))
        self.branch_pool = ConvBNReLU(inp, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        third = self.branch3_1(x)
        third = [self.branch3_2a(third), self.branch3_2b(third)]
        pooled = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([self.branch1(x), self.branch2(x), torch.cat(third, 1), pooled], 1)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBNReLU(3, 12, 3, 2)
        self.mixed1 = InceptionBlock(12)
        self.mixed2 = InceptionBlock(38)
        self.fc = nn.Linear(38, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.mixed1(self.stem(x)), 2)
        return self.fc(torch.mean(self.mixed2(x), (2, 3)))


class Fire(nn.Module):
    def __init__(self, inp: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inp, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.squeeze(x))
        return torch.cat([self.act(self.expand1x1(x)), self.act(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Fire modules, the classifier a convolution, a skip around one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2), nn.ReLU(True), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(12, 6, 10)
        )
        self.fire2 = Fire(20, 6, 10)
        self.fire3 = Fire(20, 8, 12)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(24, 10, 1), nn.ReLU(True), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = self.fire3(x + self.fire2(x))
        return torch.flatten(self.classifier(x), 1)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """ShuffleNet-V2: half of the channels pass, half are worked on, then they are dealt like cards."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((x1, self.branch(x2)), dim=1), 2)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBNReLU(3, 16)
        self.units = nn.Sequential(ShuffleUnit(16), ShuffleUnit(16))
        self.conv5 = ConvBNReLU(16, 24, 1)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv5(self.units(self.stem(x))).mean([2, 3]))


class PixelShuffleNet(nn.Module):
    """Super-resolution: depth to space in the middle and at the end, space to depth at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(2)
        self.head = nn.Conv2d(12, 12, 3, padding=1)
        self.expand = nn.Conv2d(12, 10 * 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.body = nn.Conv2d(10, 14, 3, padding=1)
        self.tail = nn.Conv2d(14, 3 * 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.head(self.unshuffle(x)))
        x = F.relu(self.shuffle(self.expand(x)))
        return F.pixel_shuffle(self.tail(F.relu(self.body(x))), 2)


class SlicedNet(nn.Module):
    """Channels 0 to 7 go one way, the others another way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv_a = nn.Conv2d(8, 12, 3, padding=1)
        self.conv_b = nn.Conv2d(8, 12, 1)
        self.conv_c = nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        a, b = self.conv_a(x[:, :8]), self.conv_b(x[:, 8:])
        x = F.relu(self.conv_c(F.relu(torch.cat([a, b], dim=1))))
        return self.head(x.mean((2, 3)))
