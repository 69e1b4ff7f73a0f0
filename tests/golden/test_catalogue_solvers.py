"""The catalogue's worked numbers for solvers of layers; each test is named by its id."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.core.solvers import SOLVERS, Layer
from secateur.core.solvers.layer import inverse_of
from secateur.core.typed import cholesky

X = torch.tensor([[1.0, 0.5, 0.2], [0.3, 1.0, -0.4], [0.2, 0.1, 1.0], [0.9, -0.6, 0.3]], dtype=torch.float64)
W = torch.tensor([[0.5, -0.3, 0.8]], dtype=torch.float64)
H = 2 * X.T @ X / 4


def _error(new: Tensor) -> float:
    off = (new - W).flatten()
    return float(0.5 * off @ H @ off)


def test_w19_inverse_diagonals_and_scores() -> None:
    inverse = inverse_of(H)
    upper = cholesky(inverse)[0].diagonal().square()
    assert inverse.diagonal().tolist() == pytest.approx([1.269077, 1.435230, 1.999054], abs=1e-6)
    assert upper.tolist() == pytest.approx([1.269077, 1.326205, 1.550388], abs=1e-6)
    assert (W[0] ** 2 / inverse.diagonal()).tolist() == pytest.approx([0.196994, 0.062708, 0.320151], abs=1e-6)
    assert (W[0] ** 2 / upper).tolist() == pytest.approx([0.196994, 0.067863, 0.4128], abs=1e-6)


WORKED = {"obc": ([0.422249, 0.0, 0.921522], 0.031354), "sparsegpt": ([0.5, 0.0, 0.888372], 0.033931)}


@pytest.mark.parametrize("solver", WORKED)
def test_w19_one_of_three_goes(solver: str) -> None:
    expected, error = WORKED[solver]
    new, kept = SOLVERS[solver].function(Layer(W[None], H[None], torch.ones(1, 1, 3, dtype=torch.bool), remove=1))
    assert kept.flatten().tolist() == [True, False, True]
    assert new.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert _error(new[0]) == pytest.approx(error, abs=1e-6)
    net = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(W)
    done = sc.reconstruct(net, 1 / 3, data=X, solver=solver, damping=0.0)  # the gram is 2 H; its scale does not matter
    assert net.weight.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert done.layers[0].after == pytest.approx((2 * error / float(W @ H @ W.T)) ** 0.5, abs=1e-5)
    done.masks.undo()
    assert torch.equal(net.weight, W)
