"""Convolutional networks in programs: folded norms, residuals, pools, depthwise layers, what stays with torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from tests.native.oracle import needs_core

pytestmark = [needs_core, pytest.mark.usefixtures("sparse_wins")]


def sparse(model: nn.Module, sparsity: float = 0.8) -> nn.Module:
    """Zeros in the weights; norms that do something, some with negative factors."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight, 0.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data[torch.rand_like(parameter) < sparsity] = 0.0
    return model.eval()


def norm_conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *norm_conv(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *norm_conv(outputs, outputs, 3)
        )
        self.short = nn.Sequential(*norm_conv(inputs, outputs, 1, stride)) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.short(x))


def resnet() -> nn.Module:
    stem = [*norm_conv(3, 8, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [Residual(8, 8, 1), Residual(8, 12, 2), Residual(12, 12, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


def mobilenet() -> nn.Module:
    layers = [*norm_conv(3, 8, 3, 2), nn.ReLU6()]
    for inputs, outputs, stride in ((8, 16, 1), (16, 24, 2)):
        layers += [
            *norm_conv(inputs, inputs, 3, stride, inputs),
            nn.ReLU6(),
            *norm_conv(inputs, outputs, 1),
            nn.Hardswish(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))


def vgg() -> nn.Module:
    """Flattened planes, an average that does not count the border, sigmoid units."""
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(10, 10, 5, padding=2), nn.GELU(),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten(), nn.Linear(640, 20), nn.ReLU(), nn.Linear(20, 4),
    )  # fmt: skip


class Shortcut(nn.Module):
    """ResNet-20's way past a stride: every second pixel, zeros for the channels that are new. Other slices stay out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 10, 3, 2, padding=1)
        self.c = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.a(x), 0.1)
        y = F.leaky_relu(self.b(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 4)))
        return self.c(y) + self.c(y)[:, :, 1:, :].mean()


class Dense(nn.Module):
    """Concatenation stays with torch; so does a norm in front of its convolution, and a dilated one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.wide = nn.Conv2d(12, 4, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.wide(torch.cat([first, self.second(F.relu(self.norm(first)))], 1))


class Grid(nn.Module):
    """An image leaves the program, and so does one from the middle of it; means without keepdim."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = F.relu(self.a(x))
        second = self.b(first)
        return first, second, second.mean((2, 3))


@pytest.mark.parametrize(
    ("make", "size", "programs"),
    [(resnet, 64, 1), (mobilenet, 33, 1), (vgg, 32, 1), (Shortcut, 15, 1), (Dense, 16, 2), (Grid, 15, 1)],
)
def test_the_same_answers(make: Callable[[], nn.Module], size: int, programs: int) -> None:
    model = sparse(make())
    fast = sc.pack(model, torch.randn(1, 3, size, size), threads=1)
    assert len(fast.regions) == programs
    for images in (1, 3):
        x = torch.randn(images, 3, size, size)
        with torch.no_grad():
            found, wanted = fast(x), model(x)
        for a, b in zip(*((y if isinstance(y, tuple) else (y,)) for y in (found, wanted)), strict=True):
            assert a.shape == b.shape
            assert torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def test_everything_is_fused() -> None:
    """A residual network is convolutions, a pool, a mean and a matrix; norms, sums and activations are nowhere."""
    graph = sc.pack(sparse(resnet()), torch.randn(2, 3, 64, 64), threads=1).regions[0].graph
    kinds = [node.kind for node in graph.nodes]
    assert kinds == ["conv", "max_pool", *["conv"] * 7, "mean", "flatten", "linear"]
    assert sum(node.residual for node in graph.nodes) == 3
    assert sum(node.activation == "relu" for node in graph.nodes) == 7


KERNELS = {"direct", "direct-even", "copied", "copied-even", "depthwise", "ell", "csr"}


def test_explain_says_how_each_convolution_runs() -> None:
    lines = sc.pack(sparse(mobilenet()), torch.randn(1, 3, 32, 32), threads=1).explain().layers
    assert [line.name for line in lines] == ["0", "3", "6", "9", "12", "17"]
    assert all(line.layout.removeprefix("dense-").rstrip("24") in KERNELS for line in lines)


def test_on_two_threads() -> None:
    model = sparse(resnet())
    x = torch.randn(3, 3, 64, 64)
    fast = sc.pack(model, x, threads=2)
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-5)


def test_another_size_of_image_is_refused() -> None:
    fast = sc.pack(sparse(resnet()), torch.randn(1, 3, 64, 64), threads=1)
    with pytest.raises(ValueError, match=r"expected dense float32 of shape \[\*, 3, 64, 64\]"):
        fast(torch.randn(1, 3, 65, 64))
