"""The catalogue's worked numbers for gates; each test is named by its id."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc

T = torch.tensor
W10_A = T([[[1.0, 0.0], [2.0, 1.0]], [[0.0, 3.0], [1.0, 1.0]]], dtype=torch.float64)
W10_DA = T([[[0.1, 0.5], [-0.2, 0.1]], [[0.3, 0.3], [0.2, 0.0]]], dtype=torch.float64)


class Same(nn.Module):
    """One channel, or several, handed on by a 1 x 1 convolution of ones."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.same = nn.Conv2d(channels, channels, 1, bias=False)
        self.double()
        with torch.no_grad():
            self.same.weight.copy_(torch.eye(channels)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.same(x)


def _score(net: nn.Module, criterion: str, x: Tensor, loss: object, y: Tensor) -> list[float]:
    call = {"unit": "filter", "targets": "same", "data": (x, y), "loss": loss}
    return sc.score(net, criterion, **call)["same.weight"].tolist()  # type: ignore[arg-type]


def test_w10_the_absolute_value_is_taken_of_each_example() -> None:
    """A second channel gives the layer's length away: it has 4 x .1 per position in both examples, mean .1."""
    x = torch.stack([W10_A, torch.ones_like(W10_A)], 1)
    slopes = torch.stack([W10_DA, torch.full_like(W10_DA, 0.1)], 1)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (output * y).flatten(1).sum(1).mean()

    first, second = _score(Same(2), "taylor_2017", x, loss, slopes)
    assert first / second == pytest.approx(0.1625 / 0.1)
    assert first**2 + second**2 == pytest.approx(1.0)
    assert 0.1 * first / second != pytest.approx(0.2125), "absolute values of elements, as in NVlabs' code"
    assert 0.1 * first / second != pytest.approx(0.1125), "absolute value of the grand mean"


@pytest.mark.parametrize(
    ("slope", "curve", "first", "second"), [(0.3, 0.2, 0.09, 0.04), (0.1, 0.8, 0.01, 0.09), (-0.2, 0.2, 0.04, 0.09)]
)
def test_w10b_second_order(slope: float, curve: float, first: float, second: float) -> None:
    """A loss whose derivatives by the gate z = 1 are g and H."""

    def loss(output: Tensor, y: Tensor) -> Tensor:
        z = output.mean()
        return slope * (z - 1) + curve * (z - 1) ** 2 / 2

    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert _score(Same(1), "gate_taylor_so", x, loss, x) == pytest.approx([second])
    assert _score(Same(1), "gate_taylor", x, loss, x) == pytest.approx([first])
