"""Iterative pruning: counts, nesting, what is rewound, which data and scores."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc
from secateur.train.loop.feed import make_feed
from secateur.train.loop.fit import fit
from secateur.train.recovery import prune_rounds
from tests.train.recovery.nets import blobs, convolutions, counts, mlp, state, trained, training

SIZES = {"0.weight": 72, "3.weight": 96, "5.weight": 24}


def test_rates_of_layers_round_by_round() -> None:
    net, given, first = trained()
    seen = []
    prune_rounds(
        net, blobs(), given, rounds=3, rates={"5": 0.1}, snapshot=first, progress=False,
        on_round=lambda row, model: seen.append(counts(model)),
    )  # fmt: skip
    expected, left = [], dict(SIZES)
    for _ in range(3):
        left = {name: n - int((0.1 if name[0] == "5" else 0.2) * n + 0.5) for name, n in left.items()}
        expected.append(left)
    assert seen == expected


def test_a_global_rate_and_given_sparsities_count_all_layers_together() -> None:
    net, given, first = trained()
    done = prune_rounds(net, blobs(), given, rounds=3, rate=0.5, snapshot=first, progress=False)
    assert [row.kept for row in done.rows] == [96, 48, 24]
    assert [row.index for row in done.rows] == [1, 2, 3]
    net, given, first = trained()
    done = prune_rounds(net, blobs(), given, sparsities=(0.3, 0.9), snapshot=first, progress=False)
    assert [row.kept for row in done.rows] == [192 - 58, 192 - 173]
    assert done.rows[1].sparsity == pytest.approx(173 / 192)
    assert done.rows[1].weights_left == pytest.approx(19 / 192)


def test_each_round_scores_the_weights_that_the_round_before_trained() -> None:
    """The whole procedure written out with prune and fit."""
    net, given, first = trained()
    prune_rounds(net, blobs(), given, rounds=3, snapshot=first, progress=False)
    other, _, again = trained()
    left = 192
    for _ in range(3):
        left -= int(0.2 * left + 0.5)
        sc.prune(other, 1 - left / 192)
        fit(other, blobs(), given, snapshot=again, progress=False)
    assert counts(net) == counts(other)
    assert all(torch.equal(state(net)[name], tensor) for name, tensor in state(other).items())


@pytest.mark.parametrize(
    ("how", "more"), [("finetune", {"epochs": 1}), ("rewind_lr", {"epochs": 1}), ("rewind_weights", {})]
)
def test_rounds_nest_and_masks_hold(how, more) -> None:
    net, given, first = trained(3)
    before = []

    def look(row, model) -> None:
        masks = sc.find_masks(model)
        masks.check()
        now = {name: masks[name] for name in masks}
        if before:
            assert not any(bool((now[name] & ~before[-1][name]).any()) for name in now)
        before.append(now)

    snapshot = first if how == "rewind_weights" else None
    done = prune_rounds(
        net, blobs(), given, rounds=3, how=how, snapshot=snapshot, on_round=look, valid=blobs(), progress=False, **more
    )
    assert len(before) == 3
    assert all(row.steps == 3 and row.metric is not None and row.wall_s > 0 for row in done.rows)


@pytest.mark.parametrize(("unit", "kept"), [("filter", [11, 9]), ("channel", [11, 9])])
def test_filters_and_channels(unit, kept) -> None:
    net, data, given = convolutions(), blobs(24, 1, 5, 5), training(2)
    example = {"example_inputs": data[0][:2]} if unit == "channel" else {}
    before = {name: tuple(p.shape) for name, p in net.named_parameters()}
    units = []
    prune_rounds(
        net, data, given, rounds=2, how="rewind_lr", epochs=1, unit=unit, progress=False, **example,
        on_round=lambda row, model: units.append(sum(int(m.sum()) for m in sc.find_masks(model).unit_masks.values())),
    )  # fmt: skip
    assert units == kept  # of 14: the output layer is protected
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == before
    if unit == "channel":
        small = sc.shrink(net, example_inputs=data[0][:2])
        assert torch.allclose(small.eval()(data[0]), net.eval()(data[0]), atol=1e-5)


@pytest.mark.parametrize(("how", "again"), [("finetune", False), ("rewind_lr", True)])
def test_the_order_of_the_data_goes_on_in_finetuning_and_comes_again_in_rewinding(how, again) -> None:
    seen = []

    def loss(output, labels):
        seen.append(labels.tolist())
        return torch.nn.functional.cross_entropy(output, labels)

    net, given = mlp(), training(2, loss=loss)
    prune_rounds(net, blobs(), given, rounds=2, how=how, epochs=1, progress=False)
    assert len(seen) == 6
    assert (seen[:3] == seen[3:]) == again


def test_a_shuffled_loader_is_read_for_training_and_for_scores() -> None:
    nets = []
    for draws in (0, 3):  # what was drawn before does not matter
        net, given, first = trained()
        loader = DataLoader(TensorDataset(*blobs()), batch_size=16, shuffle=True)
        torch.rand(draws)
        prune_rounds(net, loader, given, rounds=2, snapshot=first, criterion="snip", progress=False)
        nets.append(state(net))
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


def test_criteria_that_read_gradients_take_batches_of_the_training() -> None:
    net, given, first = trained()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    done = prune_rounds(net, blobs(), given, rounds=1, snapshot=first, criterion="snip", progress=False)
    assert done.rows[0].kept == 154
    assert torch.equal(torch.rand(1), expected)
    other, _, _ = trained()
    x, y = blobs()
    batch = next(make_feed((x, y), given, torch.device("cpu")).epoch(0))
    masks = sc.prune(other, 38 / 192, criterion="snip", data=batch, loss=given.loss)
    assert counts(net) == {name: masks.kept(name) for name in masks}


def test_criteria_that_compare_with_first_weights_read_the_snapshot() -> None:
    net, given, first = trained()
    dense = state(net)
    prune_rounds(net, blobs(), given, sparsities=[0.5], snapshot=first, criterion="large_init", progress=False)
    other = mlp()
    other.load_state_dict(dense)
    masks = sc.prune(other, 0.5, criterion="large_init", init=first.model)
    assert all(torch.equal(sc.find_masks(net)[name], masks[name]) for name in masks)


def test_rounds_go_on_from_masks_that_are_there() -> None:
    net, given, first = trained()
    sc.prune(net, 0.5)
    done = prune_rounds(net, blobs(), given, rounds=1, rate=0.5, snapshot=first, progress=False)
    assert done.rows[0].kept == 48


def test_refusals_come_before_anything_changes() -> None:
    net, given, first = trained()
    before = state(net)
    for told, more in {
        "give either rounds=": {},
        "either rounds": {"rounds": 1, "sparsities": [0.5]},
        "rounds=0": {"rounds": 0},
        r"rate=2": {"rounds": 1, "rate": 2},
        "sparsities= and allocation= have no use": {"rounds": 1, "rates": {"5": 0.1}, "allocation": "uniform"},
        "there are no rounds": {"rounds": 1, "unit": "2 of 4"},
        "matches nothing": {"rounds": 1, "targets": "9"},
        "needs epochs=": {"rounds": 1, "how": "finetune", "snapshot": None},
        "needs snapshot=": {"rounds": 1, "snapshot": None},
    }.items():
        with pytest.raises(ValueError, match=told):
            prune_rounds(net, blobs(), given, **{"snapshot": first, **more})
    assert all(torch.equal(before[name], tensor) for name, tensor in state(net).items())
    assert sc.find_masks(net) is None


def test_a_round_of_nothing_stops_with_the_rounds_before_done() -> None:
    net, given, first = trained()
    with pytest.raises(ValueError, match="would leave nothing"):
        prune_rounds(net, blobs(), given, rounds=40, rate=0.5, snapshot=first, min_density=None, progress=False)
    assert sum(map(sc.find_masks(net).kept, sc.find_masks(net))) == 1
