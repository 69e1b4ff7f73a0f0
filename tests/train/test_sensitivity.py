from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 16, 5),
    )  # fmt: skip


X = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def _figure(model: nn.Module) -> float:
    return -float(model(X).detach().double().square().mean())


@pytest.mark.parametrize("unit", ["weight", "filter", "channel"])
def test_each_layer_alone_as_by_hand_and_all_is_put_back(unit: str) -> None:
    net = _net().train()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state, told = torch.get_rng_state(), list[tuple[int, int, str]]()
    options: dict[str, Any] = {"unit": unit, "example_inputs": X} if unit == "channel" else {"unit": unit}

    def noisy(model: nn.Module) -> float:
        assert not model.training
        torch.rand(3)
        model[1].running_mean += 1  # type: ignore[index, operator]
        model[1].running_mean -= 1  # type: ignore[index, operator]
        model[1].num_batches_tracked += 1  # type: ignore[index, operator]
        return _figure(model)

    scan = sc.sensitivity(net, noisy, sparsities=(0.25, 0.5), progress=lambda *report: told.append(report), **options)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert torch.equal(torch.get_rng_state(), state)
    assert sc.find_masks(net) is None
    assert [report[0] for report in told] == list(range(1, 2 * len(scan.figures) + 2))
    assert {report[1] for report in told} == {2 * len(scan.figures) + 1}
    assert scan.dense == pytest.approx(_figure(net.eval()))
    for key, share in itertools.product(scan.figures, (0.25, 0.5)):
        alone = copy.deepcopy(net)
        sc.prune(alone, share, targets=[key.removesuffix(".weight")], **options)
        assert scan.figures[key][(0.25, 0.5).index(share)] == pytest.approx(_figure(alone), rel=1e-6)
        assert scan.figures[key][0] != scan.dense


def test_what_evaluate_raises_leaves_no_trace() -> None:
    net = _net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    calls = itertools.count()

    def fails(model: nn.Module) -> float:
        if next(calls) == 3:
            model[1].running_var.zero_()  # type: ignore[index, union-attr]
            raise RuntimeError("no more")
        return 0.0

    with pytest.raises(RuntimeError, match="no more"):
        sc.sensitivity(net, fails)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_largest_sparsity_within_a_drop_and_a_budget_spent_by_the_scan() -> None:
    scan = sc.Sensitivity(
        0.9, (0.2, 0.5, 0.8), {"0.weight": (0.9, 0.85, 0.4), "1.weight": (0.89, 0.7, 0.75)},
        {"0.weight": 100, "1.weight": 50},
    )  # fmt: skip
    assert scan.shares(0.0) == {"0.weight": 0.2, "1.weight": 0.0}
    assert scan.shares(0.05) == {"0.weight": 0.5, "1.weight": 0.2}
    assert scan.shares(0.15) == {"0.weight": 0.5, "1.weight": 0.8}
    assert scan.sparsity(0.05) == pytest.approx(60 / 150)
    for removed, kept in (
        (0, (100, 50)),
        (20, (80, 50)),
        (60, (50, 40)),
        (45, (65, 40)),
        (90, (50, 10)),
        (149, (1, 0)),
    ):
        net = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 5, bias=False))
        masks = sc.prune(net, removed / 150, allocation=scan.allocation, targets=["0", "1"], min_density=None)
        assert (masks.kept("0.weight"), masks.kept("1.weight")) == kept, removed
    assert "0.8500" in str(scan)


def test_bad_choices_are_refused() -> None:
    net = _net()
    for wrong in ([], [0.5, 0.2], [0.0, 0.5], [0.5, 1.1]):
        with pytest.raises(ValueError, match="give shares that rise"):
            sc.sensitivity(net, _figure, sparsities=wrong)
    with pytest.raises(ValueError, match="nothing to scan"):
        sc.sensitivity(net, _figure, unit="2 of 4")
    with pytest.raises(ValueError, match="evaluate gave nan with nothing pruned"):
        sc.sensitivity(net, lambda _: float("nan"))
    scan = sc.sensitivity(net, _figure, sparsities=(0.5,))
    with pytest.raises(ValueError, match="the scan is of"):
        sc.prune(net, 0.5, unit="filter", allocation=scan.allocation)
    sc.prune(net, 0.5)
    with pytest.raises(ValueError, match="has masks already"):
        sc.sensitivity(net, _figure)


def _macs_by_hand(keep: Mapping[str, Tensor]) -> int:
    """conv 1->4 at 6x6, conv 4->6 at 4x4, linear 96->5."""
    first, second = (int(keep[key].sum()) for key in ("0.weight", "3.weight"))
    return first * 9 * 36 + first * second * 9 * 16 + second * 16 * 5


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_a_knapsack_of_channels_meets_its_budget_and_leaves_no_room(share: float) -> None:
    net = _net().eval()
    cost = sc.costs(net, "macs", X)
    assert cost({}) == _macs_by_hand({"0.weight": torch.ones(4), "3.weight": torch.ones(6)})
    masks = sc.prune(net, share, unit="channel", example_inputs=X, allocation=sc.knapsack(cost))
    keep = dict(masks.unit_masks)
    budget = (1 - share) * cost({})
    assert cost(keep) == _macs_by_hand(keep) <= budget
    for key, mask in keep.items():
        if not bool(mask.all()):
            more = mask.clone()
            more[int((~mask).nonzero()[0])] = True
            assert _macs_by_hand({**keep, key: more}) > budget
    assert all(bool(mask.any()) for mask in keep.values())


def test_exact_is_never_worse_than_greedy_where_costs_add_up() -> None:
    prices = {"0.weight": 7, "1.weight": 3, "2.weight": 5}

    def price(keep: Mapping[str, Tensor]) -> int:
        return sum(prices[key] * int(mask.sum()) for key, mask in keep.items())

    for seed in range(8):
        torch.manual_seed(seed)
        kept: dict[str, float] = {}
        for how in ("greedy", "exact"):
            torch.manual_seed(seed)
            net = nn.Sequential(*[nn.Linear(1, 5, bias=False) for _ in prices])
            scores = sc.score(net, "l1", unit="filter", targets=["0", "1", "2"])
            allocation = sc.knapsack(price, how=how, steps=2)  # type: ignore[arg-type]
            masks = sc.prune(
                net, 0.47, criterion="l1", unit="filter", targets=["0", "1", "2"], allocation=allocation,
                min_density=None,
            )  # fmt: skip
            assert price(masks.unit_masks) <= 0.53 * 75
            kept[how] = sum(float(scores[key][mask].sum()) for key, mask in masks.unit_masks.items())
        assert kept["exact"] >= kept["greedy"] - 1e-9


def test_knapsack_by_predicted_milliseconds_and_its_refusals() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    table = sc.cost_table(net, torch.randn(4, 64), sparsities=(0.0, 0.5, 0.9))
    cost = sc.costs(net, table)
    dense = {"0.weight": torch.ones(64, 64, dtype=torch.bool), "2.weight": torch.ones(8, 64, dtype=torch.bool)}
    assert cost(dense) == pytest.approx(table.total(0.0))
    half = dense | {"0.weight": torch.arange(64 * 64).reshape(64, 64) % 2 == 0}
    assert cost(half) == pytest.approx(table.total({"0": 0.5}))
    with pytest.raises(ValueError, match="take 'greedy' or 'exact'"):
        sc.knapsack(cost, how="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="take 'macs', 'params', 'bytes'"):
        sc.costs(net, "flops", torch.randn(4, 64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs example_inputs"):
        sc.costs(net, "macs")
    with pytest.raises(ValueError, match="has to give a finite number"):
        sc.prune(net, 0.5, allocation=sc.knapsack(lambda keep: float("inf")))
    with pytest.raises(ValueError, match="with the least that every key may keep the cost is 5"):
        sc.prune(net, 0.5, allocation=sc.knapsack(lambda keep: 5.0, steps=1))
    with pytest.raises(ValueError, match="takes whole numbers"):
        sc.prune(
            net,
            0.5,
            unit="filter",
            targets=["0"],
            allocation=sc.knapsack(lambda keep: 0.3 * float(keep["0.weight"].sum()), how="exact"),
        )
    sc.prune(net, 0.5)
    with pytest.raises(ValueError, match="weighs all units at once"):
        sc.prune(net, 0.7, allocation=sc.knapsack(cost))


@pytest.mark.parametrize(("given", "kind"), [(None, "NoneType"), (torch.ones(2), "Tensor"), ("high", "str")])
def test_what_is_no_number_is_refused(given: Any, kind: str) -> None:
    net = nn.Linear(4, 3)
    dense = net.weight.detach().clone()
    with pytest.raises(ValueError, match=f"evaluate gave a {kind}, and it has to return one number"):
        sc.sensitivity(net, lambda _: given)
    assert torch.equal(net.weight, dense)


def test_beyond_the_scan_layers_share_in_proportion_to_what_they_have() -> None:
    scan = sc.Sensitivity(0.9, (0.5,), {"a": (0.9,), "b": (0.9,)}, {"a": 10, "b": 30})
    assert scan.allocation.function({"a": 10, "b": 30}, 12) == {"a": 3, "b": 9}


@pytest.mark.parametrize("given", [0.5, None, "abc", ["a"], [None], (0.5, True), [], [0.5, float("nan")]])
def test_sparsities_that_are_no_numbers_are_refused(given: object) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"sparsities=.*: give shares that rise"):
        sc.sensitivity(net, lambda model: 1.0, sparsities=given)  # type: ignore[arg-type]


def test_buffers_that_evaluate_rebinds_are_the_old_ones_again() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net.register_buffer("calls", None)
    mean, state = net[1].running_mean, {name: value.clone() for name, value in net.state_dict().items()}

    def evaluate(model: nn.Module) -> float:
        assert torch.equal(model[1].running_mean, state["1.running_mean"]), "an evaluation sees another's buffers"
        model[1].running_mean = model[1].running_mean + 1.0
        model[1].running_var.mul_(2.0)
        model.calls = torch.ones(1)
        model.register_buffer("more", torch.ones(1))
        return 1.0

    sc.sensitivity(net, evaluate, sparsities=(0.5,))
    assert net[1].running_mean is mean
    assert net.calls is None
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
