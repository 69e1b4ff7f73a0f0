"""Evidence of second order and of single samples on models that make it hard: the same numbers, or a clear no."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import secateur as sc

THROUGH = ["grasp", "synflow", "force", "fisher", "obd(hess='fisher')", "obs(hess='fisher')", "woodfisher"]
REFUSED = ["prospr", "obd", "obd(hess='hutchinson')", "taylor_second", "obs"]


class Checkpointed(nn.Module):
    def __init__(self, on: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.on = on

    def part(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.part, x, use_reentrant=False) if self.on else self.part(x))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cells, self.last = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cells(x)[0].mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))).mean(1))


def data(*shape: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(5, *shape, 8, generator=g), torch.randint(0, 3, (5,), generator=g)


def scores(net: nn.Module, criterion: str, given: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    shown = given[0][:1] if criterion == "synflow" else None
    return sc.score(net, criterion, data=given, loss=F.cross_entropy, example_inputs=shown)


@pytest.mark.parametrize("criterion", THROUGH)
def test_checkpointing_changes_nothing(criterion: str) -> None:
    plain, again = (scores(Checkpointed(on), criterion, data()) for on in (False, True))
    for name, one in plain.items():
        torch.testing.assert_close(again[name], one)


@pytest.mark.parametrize("criterion", REFUSED)
def test_or_it_is_refused(criterion: str) -> None:
    with pytest.raises(ValueError, match="turn it off while scoring"):
        scores(Checkpointed(True), criterion, data())


@pytest.mark.filterwarnings("ignore:.*second derivatives are negative")
@pytest.mark.parametrize("criterion", [*THROUGH, *REFUSED])
@pytest.mark.parametrize("make", [Encoder, Recurrent, Tied])
def test_attention_recurrence_and_tied_weights(make: Any, criterion: str) -> None:
    found = scores(make(), criterion, data(4))
    assert found
    assert all(bool(torch.isfinite(one).all()) and bool((one != 0).any()) for one in found.values())


@pytest.mark.filterwarnings("ignore:.*second derivatives are negative")
@pytest.mark.parametrize("criterion", [*THROUGH, *REFUSED])
def test_half_precision_and_wrappers(criterion: str) -> None:
    x, y = data(4)
    whole = scores(Encoder(), criterion, (x, y))
    half = scores(nn.DataParallel(Encoder().bfloat16()), criterion, (x.bfloat16(), y))
    for name, one in whole.items():
        a, b = one.flatten().double(), half[name].flatten().double()
        assert float(F.cosine_similarity(a, b, dim=0)) > 0.9, name


def test_samples_in_train_mode_go_one_by_one_through_a_batch_norm() -> None:
    """``vmap`` refuses running statistics; one by one it works, where a sample has several positions."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(21, 2))
    x, y = torch.randn(4, 2, 8), torch.tensor([0, 1, 1, 0])
    before = net[1].running_mean.clone()  # type: ignore[union-attr]
    found = sc.score(net, "fisher", data=(x, y), loss=F.cross_entropy, mode="train")["0.weight"]
    assert torch.equal(net[1].running_mean, before)  # type: ignore[arg-type]
    expected = torch.zeros_like(net[0].weight)
    for row in range(4):
        loss = F.cross_entropy(net(x[row : row + 1]), y[row : row + 1])
        expected += torch.autograd.grad(loss, [net[0].weight])[0].square() / 4
    torch.testing.assert_close(found, (net[0].weight.square() * expected).detach())
