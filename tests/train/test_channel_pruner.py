"""The pruner by channels: gradual, resumable, and nothing grows back."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import secateur as sc
from secateur.model.mask_checks import check_zeros
from tests.oracles.channel_nets import CHAIN, Chain, put_groups

X = torch.zeros(2, 2, 3, 3)


@pytest.fixture(autouse=True)
def groups(monkeypatch: pytest.MonkeyPatch) -> None:
    put_groups(monkeypatch, CHAIN)


def plan(**choices: Any) -> sc.Plan:
    return sc.Plan(**{"sparsity": 0.7, "unit": "channel", "schedule": "cubic", "end": 12, "every": 3, **choices})


def steps(net: Chain, optimizer: torch.optim.Optimizer, count: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(8, 2, 3, 3, generator=generator)
        y = torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


def units_left(pruner: sc.Pruner) -> int:
    return sum(int(mask.sum()) for mask in pruner.masks.unit_masks.values())


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"criterion": "snip"},
        {"criterion": "movement"},
        {"criterion": "movement_sanh", "begin": 3},
        {"criterion": "taylor", "unit": "channel(all)", "begin": 3},
        {"policy": "soft"},
        {"criterion": "random", "allocation": "uniform"},
    ],
    ids=str,
)
def test_a_cubic_schedule_removes_channels_and_regrows_nothing(choices: dict[str, Any]):
    net = Chain()
    choices = {"begin": 1, **choices}
    pruner = sc.Pruner(net, plan(**choices), example_inputs=X)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=0.01)
    pruner.attach(optimizer)
    seen: list[dict[str, Tensor]] = []
    for turn in range(14):
        steps(net, optimizer, 1, seed=turn)
        seen.append({group: mask.clone() for group, mask in pruner.masks.unit_masks.items()})
        pruner.masks.check()
    assert [point.sparsity for point in pruner.history] == sorted(point.sparsity for point in pruner.history)
    assert len(pruner.history) >= 4
    wanted = 18 - 13
    assert abs(units_left(pruner) - wanted) <= (2 if choices.get("allocation") == "uniform" else 0)
    if choices.get("policy") != "soft":
        for earlier, later in itertools.pairwise(seen):
            assert not any(bool((later[group] & ~earlier[group]).any()) for group in CHAIN)
    for name, parameter in net.named_parameters():
        if name in pruner.masks:
            check_zeros(name, parameter, pruner.masks[name])
            assert optimizer.state[parameter]["exp_avg"][~pruner.masks[name]].abs().max() == 0.0


def test_evidence_from_data_is_read_at_each_update():
    net = Chain()
    x, y = torch.randn(12, 2, 3, 3), torch.randint(3, (12,))
    pruner = sc.Pruner(net, plan(criterion="gate_taylor"), (x, y), F.cross_entropy, example_inputs=X)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner.attach(optimizer)
    steps(net, optimizer, 12)
    assert units_left(pruner) == 5


def test_a_run_goes_on_where_its_checkpoint_was_written():
    straight, first, second = Chain(1), Chain(1), Chain(2)
    pruners = [sc.Pruner(net, plan(criterion="snip", begin=1), example_inputs=X) for net in (straight, first, second)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9) for net in (straight, first, second)]
    for pruner, optimizer in zip(pruners[:2], optimizers[:2], strict=True):
        pruner.attach(optimizer)
    for turn in range(6):
        steps(straight, optimizers[0], 1, turn)
        steps(first, optimizers[1], 1, turn)
    second.load_state_dict(first.state_dict())
    optimizers[2].load_state_dict(optimizers[1].state_dict())
    pruners[2].load_state_dict(pruners[1].state_dict())
    pruners[2].attach(optimizers[2])
    for turn in range(6, 13):
        steps(straight, optimizers[0], 1, turn)
        steps(second, optimizers[2], 1, turn)
    assert all(torch.equal(pruners[0].masks.unit_masks[g], pruners[2].masks.unit_masks[g]) for g in CHAIN)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
