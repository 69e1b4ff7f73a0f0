"""A pruner that was stopped goes on as if it had not been."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from secateur.train import Plan, Pruner
from tests.train.loops import mlp, steps


@pytest.mark.parametrize("policy", ["hard", "soft"])
@pytest.mark.parametrize("criterion", ["magnitude", "snip", "movement", "movement_sanh"])
def test_a_resumed_run_is_bit_identical(policy: str, criterion: str):
    plan = Plan(0.8, criterion=criterion, schedule="cubic", begin=2, end=14, every=3, policy=policy)  # type: ignore[arg-type]

    def start() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
        net = mlp()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        pruner = Pruner(net, plan)
        pruner.attach(optimizer)
        return net, optimizer, pruner

    net, optimizer, pruner = start()
    steps(net, optimizer, 0, 9)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict()}, file)
    steps(net, optimizer, 9, 18)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again, optimizer2, pruner2 = start()
    again.load_state_dict(state["net"])
    optimizer2.load_state_dict(state["optimizer"])
    pruner2.load_state_dict(state["pruner"])
    steps(again, optimizer2, 9, 18)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert pruner.history == pruner2.history
    assert all(torch.equal(pruner.masks[n], pruner2.masks[n]) for n in pruner.masks)


def test_a_checkpoint_of_another_plan_is_refused():
    one, two = Pruner(mlp(), Plan(0.8, begin=2)), Pruner(mlp(), Plan(0.7, begin=2))
    with pytest.raises(ValueError, match="another plan; it differs in sparsity"):
        two.load_state_dict(one.state_dict())


def test_rounds_of_one_plan_alone_are_named():
    plain, rounds = Pruner(mlp(), Plan(0.8)), Pruner(mlp(), Plan(0.8, rounds=3))
    for one, other in ((plain, rounds), (rounds, plain)):
        with pytest.raises(ValueError, match="another plan; it differs in rounds"):
            one.load_state_dict(other.state_dict())


def test_a_plan_that_cannot_be_written_down_still_resumes():
    def start(criterion: object) -> Pruner:
        return Pruner(mlp(), Plan(0.5, criterion=criterion, targets=nn.Linear, schedule="linear", end=4))  # type: ignore[arg-type]

    one = start(lambda weight: weight.abs())
    one.step()
    two = start(lambda weight: weight.abs())
    two.load_state_dict(one.state_dict())
    assert two.clock == 1
    assert two.history == one.history
    with pytest.raises(ValueError, match="differs in criterion"):
        start("magnitude").load_state_dict(one.state_dict())
