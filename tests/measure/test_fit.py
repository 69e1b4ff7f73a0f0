"""Fit and agreement against slow float64 loops, and no trace left behind."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.measure import agreement, evaluate, expected_calibration_error
from secateur.records import Accuracy, Agreement


def softmax(row: np.ndarray) -> np.ndarray:
    e = np.exp(row - row.max())
    return e / e.sum()


def slow_accuracy(logits: np.ndarray, y: np.ndarray, bins: int) -> Accuracy:
    n = len(y)
    p = [softmax(row) for row in logits]
    right = [int(np.argmax(row)) == label for row, label in zip(logits, y, strict=True)]
    top1 = sum(right) / n
    ece = 0.0
    for m in range(bins):
        inside = [i for i in range(n) if m / bins < p[i].max() <= (m + 1) / bins]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            confidence = sum(p[i].max() for i in inside) / len(inside)
            ece += len(inside) / n * abs(accuracy - confidence)
    nll = -sum(math.log(p[i][y[i]]) for i in range(n)) / n
    return Accuracy("test", n, top1, math.sqrt(top1 * (1 - top1) / n), nll, ece, bins)


def slow_agreement(dense: np.ndarray, sparse: np.ndarray, y: np.ndarray) -> Agreement:
    same = flips = kl = 0.0
    for d, s, label in zip(dense, sparse, y, strict=True):
        same += np.argmax(d) == np.argmax(s)
        flips += np.argmax(d) == label and np.argmax(s) != label
        p, q = softmax(d), softmax(s)
        kl += sum(p[c] * math.log(p[c] / q[c]) for c in range(len(p)))
    return Agreement(len(y), same / len(y), flips / len(y), kl / len(y))


def check_close(found: object, expected: object) -> None:
    assert vars(found) == {
        key: pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
        for key, value in vars(expected).items()
    }


class Column(nn.Module):
    """Model k of a batch that carries the logits of several models side by side."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.k]


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 20), st.integers(0, 1000), st.integers(1, 17))
def test_everything_equals_slow_loops(n: int, classes: int, bins: int, seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, 2, classes)) * 3)
    y = torch.from_numpy(rng.integers(0, classes, n))
    loader = DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True)
    for k in (0, 1):
        check_close(evaluate(Column(k), loader, bins=bins), slow_accuracy(x[:, k].numpy(), y.numpy(), bins))
    check_close(agreement(Column(0), Column(1), loader), slow_agreement(x[:, 0].numpy(), x[:, 1].numpy(), y.numpy()))


def test_a_model_agrees_with_itself() -> None:
    x = torch.randn(50, 1, 4, generator=torch.Generator().manual_seed(0))
    found = agreement(Column(0), Column(0), (x, torch.zeros(50, dtype=torch.long)))
    assert (found.agreement, found.negative_flips, found.kl) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_bins_are_closed_above(bins: int) -> None:
    edges = torch.tensor([k / bins for k in range(1, bins + 1)], dtype=torch.float64)
    # Each edge, with a wrong answer, stands beside a right answer just below it in the same bin.
    confidence = torch.cat([edges, edges - 0.4 / bins])
    correct = torch.cat([torch.zeros(bins), torch.ones(bins)])
    by_hand = sum(abs(1 - (2 * k / bins - 0.4 / bins)) for k in range(1, bins + 1)) / (2 * bins)
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(by_hand)


def test_tensors_and_loader_give_the_same() -> None:
    x, y = torch.randn(600, 1, 3), torch.randint(0, 3, (600,))
    check_close(evaluate(Column(0), (x, y)), evaluate(Column(0), [(x[:7], y[:7]), (x[7:], y[7:])]))


def numpy_state() -> list[int]:
    return np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state is what must not move


def test_no_trace_is_left() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    net.train()
    net[1].eval()  # a frozen norm stays frozen, the rest stays in training
    net[0].weight.grad = torch.ones(8, 4)
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(40, 4), torch.randint(0, 3, (40,)))
    loader = DataLoader(data, batch_size=7, shuffle=True, generator=generator)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    states = torch.random.get_rng_state(), generator.get_state(), random.getstate(), numpy_state()
    first = evaluate(net, loader)
    assert [m.training for m in net.modules()] == [True, True, False, True, True]
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert torch.equal(states[1], generator.get_state())
    assert states[2] == random.getstate()
    assert states[3] == numpy_state()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(net[0].weight.grad, torch.ones(8, 4))
    assert evaluate(net, loader) == first  # the same order, dropout off
    assert torch.is_grad_enabled()


def test_flags_return_after_a_failure() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train()
    with pytest.raises(RuntimeError):
        evaluate(net, (torch.zeros(2, 5), torch.zeros(2, dtype=torch.long)))
    assert all(module.training for module in net.modules())


ONE = torch.zeros(1, dtype=torch.long)
WRONG = [
    ([], "no batch"),
    (iter([]), "no batch"),
    ([{"x": ONE}], "a batch is a dict"),
    ([(ONE, ONE, ONE)], "a batch is a tuple of 3"),
    ((torch.zeros(3, 2), torch.zeros(2)), "same number"),
    ([(torch.zeros(1, 2, 2), ONE)], r"logits \[batch, classes\]"),
    ([(torch.zeros(1, 2), torch.zeros(1))], "float32"),
    ([(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.long))], r"int64 \(1, 2\)"),
    ([(torch.zeros(1, 2), ONE - 100)], r"\[-100, -100\]"),
    ([(torch.zeros(1, 2), ONE + 2)], "2 classes"),
    ([(torch.tensor([[0.0, torch.nan]]), ONE)], "1 of 1 samples"),
]


@pytest.mark.parametrize(("data", "says"), WRONG, ids=[says for _, says in WRONG])
def test_other_data_are_refused_with_what_is_supported(data: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        evaluate(nn.Identity(), data)  # type: ignore[arg-type]


def test_different_classes_and_bad_confidences_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dense gives logits \(1, 2\) and sparse \(1, 1\)"):
        agreement(nn.Identity(), nn.AdaptiveAvgPool1d(1), (torch.zeros(1, 2), ONE))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        expected_calibration_error(torch.tensor([1.5]), torch.tensor([1]))
    with pytest.raises(ValueError, match="n >= 1"):
        expected_calibration_error(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="bins=0"):
        expected_calibration_error(torch.tensor([0.5]), torch.tensor([1]), bins=0)
