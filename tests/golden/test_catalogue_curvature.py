"""The catalogue's worked numbers for second derivatives: 3.4 to 3.7, by the public functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc

F64 = torch.float64
G = torch.tensor([[0.5, -0.1], [-0.5, 0.3], [0.4, 0.1]], dtype=F64)
H = torch.tensor([[2.0, 1.9, 0.0], [1.9, 2.0, 0.1], [0.0, 0.1, 0.5]], dtype=F64)


def layer(*weights: float) -> nn.Linear:
    made = nn.Linear(len(weights), 1, bias=False, dtype=F64)
    made.weight.data.copy_(torch.tensor([weights], dtype=F64))
    return made


def quadratic(model: Any, batch: Any) -> Tensor:
    """At its minimum in zero: second derivatives H, whatever the weights."""
    w = model.weight.flatten()
    return 0.5 * w @ H @ w


def of_outputs(output: Tensor, y: Tensor) -> Tensor:
    return output.mean()


def test_w10b_second_order_taylor() -> None:
    g, h = torch.tensor([0.3, 0.1, -0.2], dtype=F64), torch.tensor([0.2, 0.8, 0.2], dtype=F64)

    def step(model: Any, batch: Any) -> Tensor:
        moved = model.weight.flatten() - 1.0
        return g @ moved + 0.5 * h @ moved.square()

    for hess in ("exact", "hutchinson"):
        found = sc.score(layer(1.0, 1.0, 1.0), f"taylor_second(hess={hess!r})", data=[0], step=step)["weight"]
        assert found.flatten().tolist() == pytest.approx([0.04, 0.09, 0.09])
    first = sc.score(layer(1.0, 1.0, 1.0), "taylor", data=[0], step=step)["weight"]
    assert first.flatten().tolist() == pytest.approx([0.09, 0.01, 0.04])


def test_w11_magnitude_damage_and_surgeon_choose_different_weights() -> None:
    given: dict[str, Any] = {"data": [0], "step": quadratic}
    net = layer(1.0, 0.8, 0.9)
    damage = sc.score(net, "obd(hess='exact')", **given)["weight"].flatten()
    assert damage.tolist() == pytest.approx([1.0, 0.64, 0.2025])
    surgeon = sc.score(net, "obs(hess='exact', damping=0.0)", **given)["weight"].flatten()
    assert surgeon.tolist() == pytest.approx([0.088384, 0.056, 0.181731], abs=1e-6)
    assert (int(net.weight.abs().argmin()), int(damage.argmin()), int(surgeon.argmin())) == (1, 2, 1)


def test_w11_the_surgeon_moves_the_kept_weights() -> None:
    net = layer(1.0, 0.8, 0.9)
    before = float(quadratic(net, 0).detach())
    masks = sc.prune(net, 1 / 3, criterion="obs(hess='exact', damping=0.0)", update=True, data=[0], step=quadratic)
    assert net.weight.flatten().tolist() == pytest.approx([1.76, 0.0, 1.06])
    moved = net.weight.detach().flatten() - torch.tensor([1.0, 0.8, 0.9], dtype=F64)
    assert moved.tolist() == pytest.approx([0.76, -0.8, 0.16])
    assert 0.5 * float(moved @ H @ moved) == pytest.approx(0.056)
    assert before > 0
    masks.undo()
    assert net.weight.flatten().tolist() == [1.0, 0.8, 0.9]


def test_w12_damage_by_the_fisher_of_samples() -> None:
    net = layer(1.0, 2.0)
    found = sc.score(net, "obd(hess='fisher')", data=(G, torch.zeros(3)), loss=of_outputs)["weight"].flatten()
    assert found.tolist() == pytest.approx([0.11, 0.073333], abs=1e-6)
    mistakes = {"square of the mean": G.mean(0).square(), "last sample only": G[-1].square()}
    assert mistakes["square of the mean"].tolist() == pytest.approx([0.017778, 0.01], abs=1e-6)
    assert mistakes["last sample only"].tolist() == pytest.approx([0.16, 0.01], abs=1e-6)
    w = torch.tensor([1.0, 2.0], dtype=F64)
    for diagonal in mistakes.values():
        assert not torch.allclose(found, 0.5 * diagonal * w.square(), rtol=0.1)


def test_w13_woodfisher() -> None:
    net = layer(1.0, 2.0)
    found = sc.score(net, "woodfisher(damping=0.1)", data=(G, torch.zeros(3)), loss=of_outputs)["weight"].flatten()
    assert found.tolist() == pytest.approx([0.149593, 0.255556], abs=1e-6)
    masks = sc.prune(net, 0.5, criterion="woodfisher(damping=0.1)", update=True, data=(G, torch.zeros(3)),
                     loss=of_outputs)  # fmt: skip
    assert masks["weight"].tolist() == [[False, True]]
    assert float(net.weight.detach()[0, 1]) == pytest.approx(2.0 - 1.304348 / 3.342391, abs=1e-6)
