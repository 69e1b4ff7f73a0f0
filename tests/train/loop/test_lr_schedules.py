"""The learning rate at every step of a training, against tables worked out by hand and against torch's schedulers."""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau

from secateur.train.loop.fit import fit
from secateur.train.loop.learning_rate import lr_at
from secateur.train.loop.lr_schedules import LR_SCHEDULES, lr_factor
from secateur.train.loop.training import Training
from tests.structure.tree import ROOT

DATA = (torch.arange(24.0).reshape(12, 2) / 24, torch.arange(12) % 2)


def rates(training: Training, **options: object) -> list[float]:
    """The rate of every step that ``fit`` makes, as the optimizer has it."""
    found: list[float] = []
    torch.manual_seed(0)
    fit(
        nn.Linear(2, 2),
        DATA,
        training,
        callbacks=lambda moment: found.append(moment.lr) if moment.at == "step" else None,
        **options,  # type: ignore[arg-type]
    )
    return found


def training(epochs: int, schedule: object, **options: object) -> Training:
    choices = {"optimizer": "sgd", "lr": 0.1, **options}
    return Training(epochs, lr_schedule=schedule, batch_size=4, loss=F.cross_entropy, **choices)  # type: ignore[arg-type]


def test_rewinding_the_learning_rate_as_worked_in_the_catalogue():
    """[N,C1]: of 100 epochs at .1, .01, .001 (drops at 50 and 75) the last 40 are 15 at .01 and 25 at .001."""
    plan = training(100, "steps(0.5, 0.75, factor=0.1)")
    found = rates(plan, start=60 * 3)
    assert len(found) == 40 * 3
    assert found == pytest.approx([0.01] * 15 * 3 + [0.001] * 25 * 3)
    assert rates(plan)[60 * 3 :] == found
    assert lr_at(plan, 299, 300) == pytest.approx(0.001)


def test_the_same_rewinding_with_a_scheduler_of_torch():
    plan = training(100, lambda optimizer, total: MultiStepLR(optimizer, [total // 2, total * 3 // 4]))
    assert rates(plan, start=180) == pytest.approx([0.01] * 45 + [0.001] * 75)
    assert lr_at(plan, 180, 300) == pytest.approx(0.01)


@pytest.mark.parametrize("step", range(12))
def test_named_schedules_by_their_formulas(step: int):
    p = step / 12
    by_hand = {
        "constant": 1.0,
        "linear": 1 - p,
        "linear(last=0.5)": 1 - p / 2,
        "cosine": math.cos(math.pi * p / 2) ** 2,
        "steps": 1.0 if step < 6 else 0.1 if step < 9 else 0.01,
        "steps(0.25, factor=0.5)": 1.0 if step < 3 else 0.5,
    }
    for spec, factor in by_hand.items():
        assert rates(training(4, spec))[step] == pytest.approx(0.1 * factor), spec


def test_cosine_is_torchs():
    named = rates(training(4, "cosine"))
    assert named == pytest.approx(rates(training(4, CosineAnnealingLR)))


def test_one_cycle_has_torchs_ends_and_its_peak_where_it_says():
    factor = lr_factor("one_cycle(warmup=0.25)")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = OneCycleLR(optimizer, max_lr=1.0, total_steps=1000, pct_start=0.25, cycle_momentum=False)
    for step in range(0, 1000, 37):
        assert factor(step / 1000) == pytest.approx(theirs.get_last_lr()[0], abs=6e-3)
        for _ in range(37):
            if theirs.last_epoch < 999:
                optimizer.step()
                theirs.step()
    assert factor(0.25) == max(factor(k / 100) for k in range(101)) == 1.0


@pytest.mark.parametrize("spec", [*LR_SCHEDULES, "steps(0.5)", "cosine(last=0.1)", "one_cycle(warmup=0.0)"])
def test_outside_of_training_the_ends_hold(spec: str):
    factor = lr_factor(spec)
    assert factor(-1.0) == factor(0.0)
    assert factor(2.0) == factor(1.0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cosin", "did you mean 'cosine'"),
        ("steps(50, 75)", r"milestones are shares of training, rising.*steps\(0.5, 0.75\)"),
        ("steps(0.75, 0.5)", "rising"),
        ("cosine(first=1)", "cosine takes last"),
        ("constant(1)", "constant takes nothing"),
        ("linear(last='x')", "is not a number"),
        ("linear(last=-1)", "gives the factor"),
        ("one_cycle(warmup=1)", "0 <= warmup < 1"),
    ],
)
def test_what_is_no_schedule_is_refused_before_training(spec: str, message: str):
    with pytest.raises(ValueError, match=message):
        Training(1, lr_schedule=spec)


def test_a_scheduler_that_waits_for_a_metric_is_refused():
    with pytest.raises(ValueError, match="without a metric"):
        rates(training(2, lambda optimizer, total: ReduceLROnPlateau(optimizer)))


def test_groups_keep_their_proportions():
    def two(parameters: object) -> torch.optim.Optimizer:
        weight, bias = parameters  # type: ignore[misc]
        return torch.optim.SGD([{"params": [weight], "lr": 0.4}, {"params": [bias], "lr": 0.2}])

    seen: list[list[float]] = []
    fit(
        nn.Linear(2, 2),
        DATA,
        training(2, "linear", optimizer=two, lr=None),
        callbacks=lambda moment: seen.append([group["lr"] for group in moment.optimizer.param_groups]),
    )
    assert all(first == pytest.approx(2 * second) for first, second in seen)
    assert seen[-1][1] == pytest.approx(0.2 / 6)


def test_a_rate_of_a_step_that_is_not():
    with pytest.raises(ValueError, match="steps 0 to 9"):
        lr_at(Training(1), 10, 10)
    assert lr_at(Training(1, partial(torch.optim.SGD, lr=0.5)), 9, 10) == 0.5


def test_the_page_lists_every_schedule_with_its_defaults():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ", page, re.M)
    assert [row.partition("(")[0] for row in rows] == list(LR_SCHEDULES)
    for row in rows:
        written, bare = lr_factor(row), lr_factor(row.partition("(")[0])
        assert [written(k / 40) for k in range(41)] == [bare(k / 40) for k in range(41)]
