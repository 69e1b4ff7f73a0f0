"""What reconstruction does beside solving: masks that were there, runs that fail half-way, biases that are shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc


def _state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def _equal(net: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("at", "options"),
    [(3, {}), (4, {"sparsity": 0.5}), (3, {"sparsity": 0.5, "undo": False}), (4, {"match": "dense"})],
    ids=["refit", "choose", "undo", "dense"],
)
def test_a_run_that_fails_half_way_leaves_undo_as_it_was(at: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    dense = _state(net)
    call = {"criterion": "woodfisher", "update": True, "data": [(x, y)], "loss": F.cross_entropy}
    masks = sc.prune(net, 0.3, targets=["0.weight", "2.weight"], **call)
    pruned, names, shares = _state(net), set(masks), masks.shares()
    passes = 0

    def step(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        if passes == at:  # of the second stage or the third; one finds the stages
            raise RuntimeError("interrupted")
        return model(batch)

    with pytest.raises(RuntimeError, match="interrupted"):
        sc.reconstruct(net, data=x, step=step, **options)
    assert _equal(net, pruned)
    assert (set(masks), masks.shares()) == (names, shares)
    masks.check()
    masks.undo()
    assert _equal(net, dense)


@pytest.mark.parametrize("late", [True, False])
def test_sparsegpt_counts_what_other_blocks_lost_already(late: bool) -> None:
    """Earlier masks took one half of the columns, so the blocks of 128 have lost very different shares."""
    torch.manual_seed(0)
    net, x = nn.Linear(300, 8), torch.randn(400, 300)
    gone = slice(150, 300) if late else slice(0, 150)
    with torch.no_grad():
        net.weight[:, gone] *= 1e-6
    masks = sc.prune(net, 0.5)
    assert not bool(net.weight[:, gone].any())
    sc.reconstruct(net, 0.6, data=x, solver="sparsegpt")
    assert masks.kept("weight") == 960
    assert not bool(net.weight[:, gone].any())


class SharedBias(nn.Module):
    """One bias in two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.bias = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(F.relu(self.first(x)))))


def test_a_bias_that_two_layers_share_is_left_alone() -> None:
    net = SharedBias()
    bias, last = net.first.bias.detach().clone(), net.last.bias.detach().clone()
    done = sc.reconstruct(net, 0.5, data=torch.rand(64, 6), match="dense")
    assert torch.equal(net.first.bias, bias)
    assert not torch.equal(net.last.bias, last)
    assert all(layer.after < layer.before for layer in done.layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequential": "blok"}, r"sequential='blok': take True \(layer by layer\), 'block', or False"),
        ({"damping": float("inf")}, "damping=inf: .*finite, 0 or more"),
    ],
)
def test_choices_that_are_none_are_refused(options: dict[str, Any], message: str) -> None:
    net = nn.Linear(4, 3)
    dense = _state(net)
    with pytest.raises(ValueError, match=message):
        sc.reconstruct(net, 0.5, data=torch.randn(8, 4), **options)
    assert _equal(net, dense)
    assert sc.find_masks(net) is None


def test_sparsegpt_column_by_column_over_several_blocks() -> None:
    """Against the method written out: what a column loses is made up for by all columns behind it."""
    torch.manual_seed(0)
    columns, rows, share = 300, 4, 0.5
    net, x = (
        nn.Linear(columns, rows).double(),
        torch.randn(900, columns).double() @ torch.randn(columns, columns).double(),
    )
    weight, gram = net.weight.detach().clone(), x.t() @ x
    gram += 0.01 * gram.diagonal().mean() * torch.eye(columns)
    upper = torch.linalg.cholesky(torch.linalg.inv(gram)).t()
    for first in range(0, columns, 128):
        block = slice(first, min(first + 128, columns))
        costs = (weight[:, block] / upper.diagonal()[block]).square().flatten()
        gone = torch.zeros_like(costs, dtype=torch.bool)
        gone[costs.argsort()[: int(share * costs.numel())]] = True
        gone = gone.reshape(rows, -1)
        for j in range(first, block.stop):
            error = torch.where(gone[:, j - first], weight[:, j] / upper[j, j], 0.0)
            weight[:, j:] -= error[:, None] * upper[j, j:]
    sc.reconstruct(net, share, data=x, solver="sparsegpt", damping=0.01)
    torch.testing.assert_close(net.weight.detach(), weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solver", ["refit", "sparsegpt", "obc"])
def test_inputs_that_are_always_zero_need_only_a_damping(solver: str) -> None:
    net = nn.Linear(6, 4)
    done = sc.reconstruct(net, 0.5, data=torch.zeros(9, 6), solver=solver, damping=0.01)
    assert (done.layers[0].kept, done.layers[0].after) == (0.5, 0.0)


def test_a_layer_without_weights_is_named_as_such() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.none, self.some = nn.Linear(4, 0), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.some(x) + self.none(x).sum()

    x = torch.randn(32, 4)
    with pytest.warns(UserWarning, match="zero-element"):
        net = Empty()
    for options in ({}, {"solver": "sparsegpt"}):
        with pytest.raises(ValueError, match=r"'none\.weight' has no weights, its shape is \(0, 4\).*exclude="):
            sc.reconstruct(net, 0.5, data=x, **options)  # type: ignore[arg-type]
    done = sc.reconstruct(net, 0.5, data=x, exclude=["none.weight"])
    assert [layer.name for layer in done.layers] == ["some.weight"]


def test_targets_that_are_not_masked_are_named() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    sc.prune(net, 0.5, targets=["0"])
    with pytest.raises(ValueError, match=r"that are masked \(0\.weight\).*with targets=\['2'\], exclude=None"):
        sc.reconstruct(net, data=torch.randn(8, 4), targets=["2"])


@pytest.mark.parametrize("damping", ["0.01", None, [0.01], True, float("nan"), float("inf"), -0.1])
def test_a_damping_that_is_no_number_is_refused(damping: object) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    before = _state(net)
    with pytest.raises(ValueError, match=r"damping=.*: a share of the mean diagonal, finite, 0 or more"):
        sc.reconstruct(net, 0.5, data=torch.randn(8, 4), damping=damping)  # type: ignore[arg-type]
    assert _equal(net, before)
