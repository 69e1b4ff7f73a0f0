"""Learning rates of fine-tuning and rewinding."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.train.loop.fit import fit
from secateur.train.loop.training import Training, make_optimizer
from secateur.train.recovery.rate import last_rate, scaled
from secateur.train.recovery.recover import Ask, course_of, recover
from tests.train.recovery.nets import blobs, mlp, state, training


def rates_of(model, data, given, how, **more) -> list[float]:
    seen = []
    recover(model, data, given, how, callbacks=lambda m: seen.append(m.lr) if m.at == "step" else None, **more)
    return [round(rate, 9) for rate in seen]


@pytest.mark.parametrize(
    ("how", "rates"),
    [
        ("finetune", [0.001] * 40),
        ("rewind_lr", [0.01] * 15 + [0.001] * 25),
        ("rewind_weights", [0.01] * 15 + [0.001] * 25),
    ],
)
def test_the_learning_rates_of_the_papers_example(how, rates) -> None:
    """[N, C1] of the catalogue: E = 100, .1 / .01 / .001 at 50 and 75, t = 40."""
    data, given = blobs(4), training(100)
    net = mlp()
    kept = fit(net, data, given, keep=(60,), progress=False).snapshots[60]
    sc.prune(net, 0.5)
    snapshot = kept if how == "rewind_weights" else None
    assert rates_of(net, data, given, how, epochs=40, snapshot=snapshot, progress=False) == rates


def test_finetune_takes_another_rate_and_the_rates_of_groups_keep_their_ratio() -> None:
    def two(parameters):
        first, *rest = parameters
        return torch.optim.SGD([{"params": [first], "lr": 0.4}, {"params": rest, "lr": 0.2}], momentum=0.9)

    given = Training(4, two, lr_schedule="steps(0.5)", batch_size=16, loss=F.cross_entropy)
    seen = []
    net = mlp()
    recover(
        net, blobs(), given, "finetune", epochs=1, lr=0.04, progress=False,
        callbacks=lambda m: seen.append([group["lr"] for group in m.optimizer.param_groups]),
    )  # fmt: skip
    assert seen[0] == pytest.approx([0.04, 0.02])


@pytest.mark.parametrize(
    "schedule", ["cosine", "linear", "one_cycle", partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1)]
)
def test_a_schedule_that_ends_at_zero_is_refused_for_finetune_with_what_to_try(schedule) -> None:
    if callable(schedule):
        one = schedule
        schedule = lambda optimizer, total: one(optimizer, total_steps=total)  # noqa: E731
    given = training(100, lr_schedule=schedule)
    net = mlp()
    before = state(net)
    with pytest.raises(ValueError, match=r"ends at a learning rate of .*lr=0\.01, or how='rewind_lr'"):
        recover(net, blobs(), given, "finetune", epochs=2, progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert rates_of(net, blobs(), given, "finetune", epochs=1, lr=0.02, progress=False) == [0.02] * 3
    rates = rates_of(net, blobs(), given, "rewind_lr", epochs=2, progress=False)
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0


def test_a_scheduler_function_rewinds_like_a_named_schedule() -> None:
    def milestones(optimizer, total):
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [total // 2, total * 3 // 4])

    data = blobs()
    for how in ("finetune", "rewind_lr"):
        named = rates_of(mlp(), data, training(4), how, epochs=2, progress=False)
        assert rates_of(mlp(), data, training(4, lr_schedule=milestones), how, epochs=2, progress=False) == named
    assert last_rate(training(4, lr_schedule=milestones), 12) == pytest.approx(0.001)


def test_finetuning_again_reads_the_data_in_another_order() -> None:
    given = training(4)
    starts = [course_of("finetune", Ask(given, 3, epochs=2, turn=turn)) for turn in (1, 2, 3)]
    assert [course.start for course in starts] == [12, 18, 24]
    assert [course.training.epochs for course in starts] == [6, 8, 10]


def test_scaled_optimizers_can_be_told_apart_and_made_again() -> None:
    given = Training(1, partial(torch.optim.SGD, lr=0.5), loss=F.cross_entropy)
    half, tenth = scaled(given, 0.5), scaled(given, 0.1)
    assert make_optimizer(half, nn.Linear(1, 1).parameters()).param_groups[0]["lr"] == 0.25
    assert half.describe() == scaled(given, 0.5).describe() != tenth.describe()
    assert "0x" not in str(half.describe())
    assert scaled(given, 1) is given
