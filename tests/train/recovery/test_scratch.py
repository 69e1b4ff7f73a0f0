"""Training from scratch at equal epochs or equal cost, and dense-sparse-dense."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.measure import count
from secateur.train.loop.fit import fit
from secateur.train.recovery import dense_sparse_dense, scratch, scratch_epochs
from secateur.train.recovery.tickets import reinitialised
from tests.train.recovery.nets import blobs, convolutions, mlp, state, training


def test_scratch_e_is_a_fresh_network_trained_like_the_dense_one() -> None:
    net = mlp()
    sc.prune(net, 0.5)
    before = state(net)
    got = scratch(net, blobs(), training(2), seed=3, progress=False)
    other = reinitialised(net, 3)
    fit(other, blobs(), training(2), progress=False)
    assert got.epochs == 2
    assert all(torch.equal(state(got.model)[name], tensor) for name, tensor in state(other).items())
    assert all(torch.equal(before[name], tensor) for name, tensor in state(net).items())
    sc.find_masks(got.model).check()


def test_scratch_b_trains_a_smaller_network_for_longer_and_its_milestones_stretch() -> None:
    net, data = convolutions(), blobs(24, 1, 5, 5)
    example = data[0][:2]
    dense = count(net, example).macs
    sc.prune(net, 0.5, unit="channel", example_inputs=example)
    small = sc.shrink(net, example_inputs=example)
    expected = int(4 * dense / count(small, example).macs)
    assert expected >= 8
    seen = []
    got = scratch(
        small, data, training(4), budget="flops", dense_macs=dense, seed=1, progress=False, valid=data,
        metric=lambda model, valid: seen.append(1) or 0.0,
    )  # fmt: skip
    assert got.epochs == expected == len(seen)
    rates = [round(row.lr, 6) for row in got.fitted.history]
    assert rates == [
        0.1 if 2 * e <= expected else 0.01 if 4 * e <= 3 * expected else 0.001 for e in range(1, expected + 1)
    ]
    assert [tuple(p.shape) for p in got.model.parameters()] == [tuple(p.shape) for p in small.parameters()]
    capped = scratch(small, data, training(4), budget="flops", dense_macs=dense, at_most=1.5, progress=False)
    assert capped.epochs == 6


def test_under_masks_the_kept_multiply_adds_count() -> None:
    net = mlp()
    dense = count(net, blobs()[0]).macs
    sc.prune(net, 0.5)
    assert scratch(net, blobs(), training(1), budget="flops", dense_macs=dense, progress=False).epochs == 2


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"budget": "flop"}, "known are 'epochs' .* 'flops'"),
        ({"budget": "flops"}, "needs dense_macs="),
        ({"dense_macs": 5}, "belong to budget='flops'"),
        ({"at_most": 2}, "belong to budget='flops'"),
        ({"budget": "flops", "dense_macs": 5}, "no more than the dense one"),
        ({"budget": "flops", "dense_macs": 500, "at_most": 0.5}, "at_most=0.5"),
    ],
)
def test_scratch_refuses(more, told) -> None:
    with pytest.raises(ValueError, match=told):
        scratch(mlp(), blobs(), training(1), progress=False, **more)


def test_epochs_are_counted_in_whole_numbers() -> None:
    assert scratch_epochs(10, "flops", dense_macs=3 * 10**17, macs=10**17) == 30
    assert scratch_epochs(3, "flops", dense_macs=10**17 - 1, macs=10**17 // 2) == 5


def test_dense_sparse_dense_lifts_the_masks_and_starts_from_zero() -> None:
    net, given = mlp(), training(4, lr_schedule="constant")
    fit(net, blobs(), given, progress=False)
    masks = sc.prune(net, 0.5, allocation="uniform", inplace=False)[1]
    gone = {name: ~masks[name] for name in masks}
    marks = []

    def metric(model, valid) -> float:
        own = sc.find_masks(model)
        marks.append((own is not None, float(model[3].weight.detach()[gone["3.weight"]].abs().max())))
        return 0.0

    done = dense_sparse_dense(
        net, blobs(), given, sparsity=0.5, epochs=(2, 3), valid=blobs(), metric=metric, progress=False
    )
    assert [masked for masked, _ in marks] == [True] * 2 + [False] * 3
    assert [size for _, size in marks[:2]] == [0.0, 0.0]
    assert 0 < marks[2][1] < 0.05  # three steps of rate 0.01 from zero; before it was masked it was larger
    assert sc.find_masks(net) is None
    assert [row.lr for row in done.sparse.history] == [0.1] * 2
    assert [row.lr for row in done.dense.history] == pytest.approx([0.01] * 3)


def test_dense_sparse_dense_that_fails_leaves_the_model_as_it_was() -> None:
    net = mlp()
    before = state(net)
    calls = []

    def loss(output, labels):
        calls.append(1)
        if len(calls) == 8:  # in the dense training: the masks are gone by then
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(output, labels)

    with pytest.raises(KeyboardInterrupt):
        dense_sparse_dense(net, blobs(), training(2, loss=loss), epochs=(2, 2), progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(net).items())
    assert sc.find_masks(net) is None


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"epochs": 3}, "epochs=3: two whole numbers"),
        ({"epochs": (1, 0)}, "two whole numbers"),
        ({"epochs": (1, 1), "final_lr_factor": 0}, "final_lr_factor=0"),
        ({"epochs": (1, 1), "sparsity": 30}, "sparsity=30"),
    ],
)
def test_dense_sparse_dense_refuses(more, told) -> None:
    net = mlp()
    with pytest.raises(ValueError, match=told):
        dense_sparse_dense(net, blobs(), training(2), progress=False, **more)
    sc.prune(net, 0.5)
    with pytest.raises(ValueError, match="has masks"):
        dense_sparse_dense(net, blobs(), training(2), epochs=(1, 1))
