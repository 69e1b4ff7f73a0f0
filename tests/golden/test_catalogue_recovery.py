"""The catalogue's worked numbers for recovery: rates of lottery tickets, epochs of training from scratch."""

from __future__ import annotations

import pytest

from secateur.train.loop.learning_rate import lr_at
from secateur.train.loop.snapshot import Snapshot
from secateur.train.loop.training import Training
from secateur.train.recovery.rates import next_cut
from secateur.train.recovery.recover import Ask, course_of
from secateur.train.recovery.scratch import scratch_epochs

LENET_300_100 = {"fc1": 300 * 784, "fc2": 100 * 300, "fc3": 10 * 100}
RATES = {"fc1": 0.2, "fc2": 0.2, "fc3": 0.1}
WEIGHTS_LEFT = {1: 80.04, 3: 51.28, 4: 41.05, 5: 32.87, 7: 21.07, 10: 10.83, 15: 3.58}


def test_7_2_weights_left_after_each_round_of_lenet_300_100() -> None:
    left, shares = dict(LENET_300_100), {}
    for index in range(1, 16):
        cut = next_cut(LENET_300_100, left, RATES)
        assert cut.counts is not None
        left = dict(cut.counts)
        shares[index] = 100 * sum(left.values()) / sum(LENET_300_100.values())
        assert shares[index] == pytest.approx(100 * (1 - cut.sparsity), abs=1e-9)
    assert {index: round(shares[index], 2) for index in WEIGHTS_LEFT} == WEIGHTS_LEFT


@pytest.mark.parametrize(
    ("how", "rates"),
    [
        ("finetune", [0.001] * 40),
        ("rewind_lr", [0.01] * 15 + [0.001] * 25),
        ("rewind_weights", [0.01] * 15 + [0.001] * 25),
    ],
)
def test_7_4_n_c1_learning_rates_of_the_last_40_of_100_epochs(how: str, rates: list[float]) -> None:
    training = Training(100, "sgd", lr=0.1, lr_schedule="steps(0.5, 0.75)")
    snapshot = Snapshot(600, {}) if how == "rewind_weights" else None
    course = course_of(how, Ask(training, per_epoch=10, epochs=40, snapshot=snapshot))
    total = course.training.epochs * 10
    found = [lr_at(course.training, step, total) for step in range(course.start, total, 10)]
    assert found == pytest.approx(rates)


@pytest.mark.parametrize(("dense", "small", "epochs"), [(138, 100, 220), (2, 1, 320), (200_000, 100_000, 320)])
def test_7_5_n_c2_scratch_b(dense: int, small: int, epochs: int) -> None:
    assert scratch_epochs(160, "flops", dense_macs=dense, macs=small) == epochs
    assert scratch_epochs(160, "epochs") == 160


def test_7_5_imagenet_is_capped_at_doubling() -> None:
    assert scratch_epochs(90, "flops", dense_macs=300, macs=100, at_most=2) == 180
    assert scratch_epochs(90, "flops", dense_macs=150, macs=100, at_most=2) == 135
