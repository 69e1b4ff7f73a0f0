"""The networks of the benchmarks, with the parameter counts that were published for them.

python -m benchmarks.removal.shapes          # builds each and checks its count
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.removal.convolutional import DenseNet, MobileNetV1, MobileNetV2, ResNet
from benchmarks.removal.transformers_of_images import Swin, ViT

__all__ = ["SHAPES", "Shape", "build", "check_counts", "image"]


@dataclass(frozen=True)
class Shape:
    """One network, and its published number of parameters at 1,000 classes."""

    make: Callable[[], nn.Module]
    parameters: int


SHAPES: dict[str, Shape] = {
    "ResNet-18": Shape(lambda: ResNet((2, 2, 2, 2), bottleneck=False), 11_689_512),
    "ResNet-50": Shape(lambda: ResNet((3, 4, 6, 3), bottleneck=True), 25_557_032),
    "DenseNet-121": Shape(DenseNet, 7_978_856),
    "MobileNetV1": Shape(MobileNetV1, 4_231_976),
    "MobileNetV2": Shape(MobileNetV2, 3_504_872),
    "ViT-B/16": Shape(ViT, 86_567_656),
    "Swin-T": Shape(Swin, 28_288_354),
    "Swin-T, modules": Shape(lambda: Swin(functional=False), 28_288_354),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The network in eval mode, with random weights and random batch-norm statistics."""
    torch.manual_seed(seed)
    model = SHAPES[name].make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.running_var, 0.5, 1.5)):
                nn.init.uniform_(tensor, low, high)
            nn.init.normal_(module.bias, 0.0, 0.1)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
    return model


def image(batch: int = 1, size: int = 224, seed: int = 1) -> Tensor:
    """Random images [batch, 3, size, size]."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def check_counts() -> dict[str, int]:
    """Build every network and compare its parameters with the published number.

    Raises:
        AssertionError: for the first that differs.
    """
    counted: dict[str, int] = {}
    for name, shape in SHAPES.items():
        counted[name] = sum(p.numel() for p in shape.make().parameters())
        assert counted[name] == shape.parameters, f"{name}: {counted[name]:,}, published {shape.parameters:,}"
    return counted


if __name__ == "__main__":
    for known, parameters in check_counts().items():
        print(f"{known:14s} {parameters:>12,}")
