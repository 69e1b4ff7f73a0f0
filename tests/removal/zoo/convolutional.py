"""Plain stacks of convolutions, in one to three dimensions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["C3D", "VGG", "ConvBNReLU", "FunctionalNet", "Generator", "PlainCNN", "SpeechCNN", "TransposedDecoder"]


class ConvBNReLU(nn.Sequential):
    """The block that half of all networks are made of."""

    def __init__(self, inp: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        )


class PlainCNN(nn.Module):
    """conv-BN-ReLU, flatten, two linear layers."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 20, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(20)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(20 * 4 * 4, 32)
        self.fc2 = nn.Linear(32, 10)
        self.dropout = nn.Dropout(0.5)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.pool(F.relu(self.bn2(self.conv2(x))))
        x = torch.flatten(x, 1)
        x = self.dropout(F.relu(self.fc1(x)))
        return self.fc2(x)


class VGG(nn.Module):
    """VGG-16 with BN, narrow."""

    plan = (8, 8, "M", 12, 12, "M", 16, 16, 16, "M", 24, 24, 24, "M", 24, 24, 24, "M")

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for step in self.plan:
            if isinstance(step, str):
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            else:
                layers += [nn.Conv2d(width, step, 3, padding=1), nn.BatchNorm2d(step), nn.ReLU(inplace=True)]
                width = step
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(width * 2 * 2, 40), nn.ReLU(True), nn.Dropout(), nn.Linear(40, 32), nn.ReLU(True), nn.Dropout(),
            nn.Linear(32, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)


class SpeechCNN(nn.Module):
    """1-d convolutions over a signal, a dilated one among them, mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, 16, 5, stride=2, padding=2)
        self.bn1 = nn.BatchNorm1d(16)
        self.conv2 = nn.Conv1d(16, 24, 3, padding=2, dilation=2)
        self.act = nn.PReLU(24)
        self.norm = nn.InstanceNorm1d(24, affine=True)
        self.conv3 = nn.Conv1d(24, 24, 3, padding=1)
        self.head = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.bn1(self.conv1(x)), 0.1)
        x = self.norm(self.act(self.conv2(x)))
        x = F.elu(self.conv3(x)).mean(dim=-1)
        return self.head(x)


class C3D(nn.Module):
    """3-d convolutions over a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(8)
        self.conv2 = nn.Conv3d(8, 16, 3, padding=1)
        self.bn2 = nn.BatchNorm3d(16)
        self.pool = nn.MaxPool3d(2)
        self.fc1 = nn.Linear(16 * 2 * 2 * 2, 24)
        self.fc2 = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.bn1(self.conv1(x)).relu())
        x = self.pool(self.bn2(self.conv2(x)).relu())
        x = x.view(x.size(0), -1)
        return self.fc2(F.relu(self.fc1(x)))


class FunctionalNet(nn.Module):
    """Every activation and pooling a function or a method; some of them are not zero at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 16, 3)
        self.conv4 = nn.Conv2d(16, 16, 3)
        self.fc1 = nn.Linear(16, 24)
        self.fc2 = nn.Linear(24, 16)
        self.fc3 = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.hardswish(self.conv1(x)), 2)
        x = torch.clamp(self.conv2(x), min=-0.5, max=2.0)
        x = self.conv3(x).sigmoid()
        x = torch.where(x > 0.5, x, 2.0 * x - 0.5)
        x = F.softplus(self.conv4(x)) - 0.25
        x = F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0]
        x = F.gelu(self.fc1(x)) * 2.0 + 1.0
        x = torch.tanh(self.fc2(F.dropout(x, 0.1, self.training)))
        return F.log_softmax(self.fc3(x), dim=1)


class TransposedDecoder(nn.Module):
    """A linear layer seen as an image, then transposed convolutions.

    ``view`` says how the channels of the image are written in the call: as a number, an attribute, or left open.
    """

    def __init__(self, view: str) -> None:
        super().__init__()
        self.view = view
        self.channels = 16
        self.fc0 = nn.Linear(10, 24)
        self.fc = nn.Linear(24, 16 * 4 * 4)
        self.up1 = nn.ConvTranspose2d(16, 12, 4, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(12)
        self.up2 = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.out = nn.Conv2d(8, 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.ConvTranspose2d, nn.Conv2d)):
                nn.init.xavier_normal_(module.weight, gain=2.0)

    def forward(self, z: Tensor) -> Tensor:
        x = self.fc(F.relu(self.fc0(z)))
        if self.view == "literal":
            x = x.view(-1, 16, 4, 4)
        elif self.view == "attribute":
            x = x.view(-1, self.channels, 4, 4)
        else:
            x = x.view(x.size(0), -1, 4, 4)
        x = F.relu(self.bn1(self.up1(F.relu(x))))
        x = F.relu(self.up2(x))
        return torch.sigmoid(self.out(x))


class Generator(nn.Module):
    """DCGAN: transposed convolutions from a latent pixel, one of them grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(10, 24, 4, 1, 0, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(True),
            nn.ConvTranspose2d(24, 16, 4, 2, 1, groups=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(True),
            nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z[:, :, None, None])
