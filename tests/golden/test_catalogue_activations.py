"""The catalogue's worked numbers for activation criteria; each test is named by its id."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc

T = torch.tensor
W8 = T(
    [
        [[[0.0, 1.0], [0.0, 0.0]], [[2.0, 3.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]],
        [[[0.0, 0.0], [5.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]],
    ]
)
"""Activations [2 images, 3 channels, 2, 2]."""
E2 = (0.2, 0.25, 0.3, 0.35, 0.9, 0.95, 0.28, 0.3)


class Known(nn.Module):
    """A layer that hands its inputs on, so that the activations are the catalogue's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.same = nn.Conv2d(channels, channels, 1, bias=False)
        self.head = nn.Linear(channels, 2)
        with torch.no_grad():
            self.same.weight.copy_(torch.eye(channels)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.same(x)).mean((2, 3)))


def _score(criterion: str, x: Tensor) -> list[float]:
    return sc.score(Known(x.shape[1]), criterion, unit="filter", data=x)["same.weight"].tolist()


def test_w8_apoz_and_mean_activation_behind_a_relu() -> None:
    before = torch.where(W8 == 0, -1.0, W8)  # what a ReLU cuts off
    for x in (W8, before):
        assert _score("apoz", x) == pytest.approx([1 - 0.75, 1 - 0.25, 1 - 1.0])
        assert _score("mean_activation", x) == pytest.approx([0.75, 1.5, 0.0])


def test_w8_near_zero_rate() -> None:
    assert _score("apoz(eps=1.0)", W8) == pytest.approx([1 - 0.875, 1 - 0.625, 1 - 1.0])
    assert _score("apoz(eps=0.0)", W8) == pytest.approx(_score("apoz", W8))


def test_e2_high_apoz_goes_first() -> None:
    shares = T(E2)
    assert shares.mean().item() == pytest.approx(0.44125)
    assert shares.std(unbiased=False).item() == pytest.approx(0.282464, abs=1e-6)
    positions = torch.arange(100).view(1, 1, 10, 10)
    x = (positions >= (100 * shares).round().view(1, -1, 1, 1)).float()
    assert _score("apoz", x) == pytest.approx([1 - share for share in E2])
    masks = sc.prune(Known(8), 2 / 8, criterion="apoz", unit="filter", targets="same", data=x)
    assert [i for i, kept in enumerate(masks.unit_masks["same.weight"].flatten().tolist()) if not kept] == [4, 5]
