"""The catalogue's worked numbers for masks, actions and movement (W4), on networks; each test is named by its id."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc

T = torch.tensor
INIT, FINAL = T([[0.5, -0.1, 0.3, -0.8, 0.2, -0.05]]), T([[0.6, -0.7, 0.1, -0.75, -0.4, 0.12]])


def _net() -> tuple[nn.Module, dict[str, Tensor]]:
    net = nn.Linear(6, 1)
    with torch.no_grad():
        net.weight.copy_(FINAL)
        net.bias.fill_(7.0)
    return net, {"weight": INIT.clone(), "bias": T([3.0])}


@pytest.mark.parametrize(
    ("criterion", "kept"),
    [
        ("large_final", [0, 1, 3]),
        ("small_final", [2, 4, 5]),
        ("large_init", [0, 2, 3]),
        ("small_init", [1, 4, 5]),
        ("large_init_large_final", [0, 3, 4]),
        ("small_init_small_final", [2, 4, 5]),
        ("magnitude_increase", [0, 1, 4]),
        ("movement", [1, 2, 4]),
    ],
)
def test_w4_masks(criterion: str, kept: list[int]) -> None:
    net, init = _net()
    sc.prune(net, 0.5, criterion=criterion, init=init)
    assert net.weight[0].nonzero().flatten().tolist() == kept


def test_w4_actions() -> None:
    net, init = _net()
    sc.prune(net, 0.5, criterion="large_final")
    found = sc.tickets.ticket(net, snapshot=init, kept="signed_constant")
    assert found.weight[0].tolist() == pytest.approx([0.414746, -0.414746, 0, -0.414746, 0, 0], abs=1e-6)
    assert found.bias.tolist() == [3.0]
    frozen = sc.tickets.ticket(net, snapshot=init, removed="zero_if_shrunk", final={"weight": FINAL, "bias": T([7.0])})
    # 2 went from .3 to .1; 4 and 5 grew.
    assert frozen.weight[0].tolist() == pytest.approx([0.5, -0.1, 0.0, -0.8, 0.2, -0.05])


def test_w4_movement_of_sanh_during_training() -> None:
    """Two steps with the catalogue's gradients at its weights; the sums -.29, -.17, -.05 order what goes."""
    weights, gradients = T([[1.0, -0.5, 0.2], [0.9, -0.4, 0.1]]), T([[0.2, -0.1, 0.0], [0.1, -0.3, 0.5]])
    for share, kept in ((1 / 3, [False, True, True]), (2 / 3, [False, False, True])):
        net = nn.Linear(3, 1, bias=False)
        pruner = sc.Pruner(net, sc.Plan(share, criterion="movement_sanh", begin=2))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        pruner.attach(optimizer)
        for weight, gradient in zip(weights, gradients, strict=True):
            with torch.no_grad():
                net.weight.copy_(weight)
            net.weight.grad = gradient[None].clone()
            optimizer.step()
        assert pruner.masks is not None
        assert pruner.masks["weight"].tolist() == [kept]
