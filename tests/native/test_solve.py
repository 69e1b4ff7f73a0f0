"""Solvers of rows against NumPy in float64, with every instruction set and without the core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.native import eliminate_columns, elimination_order, refit_rows, solve
from tests.native.oracle import instruction_sets, needs_core


@pytest.fixture(params=[*instruction_sets(), "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    core: Any = solve.core
    if request.param == "torch":
        monkeypatch.setattr(solve, "core", None)
    else:

        class Forced:
            active = core.table(request.param)
            refit_rows, obs_columns, obs_order = core.refit_rows, core.obs_columns, core.obs_order

        monkeypatch.setattr(solve, "core", Forced)
    return request.param


def _problem(columns: int, rows: int, density: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed + columns)
    x = random.standard_normal((columns + 5, columns)) @ (
        np.eye(columns) + 0.3 * random.standard_normal((columns,) * 2)
    )
    return x.T @ x, random.standard_normal((rows, columns)), random.random((rows, columns)) < density


def _tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array.copy()) for array in arrays]


@pytest.mark.parametrize("columns", [1, 2, 7, 8, 9, 15, 16, 17, 31, 40, 65, 100])
@pytest.mark.parametrize("density", [0.0, 0.3, 0.6, 1.0])
def test_refit_is_the_solution_on_the_support(way: str, columns: int, density: float) -> None:
    gram, targets, kept = _problem(columns, 6, density)
    found = refit_rows(*_tensors(gram, targets, kept)).numpy()
    expected = np.zeros_like(targets)
    for row, mask in enumerate(kept):
        on = mask.nonzero()[0]
        expected[row, on] = np.linalg.solve(gram[np.ix_(on, on)], targets[row, on])
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    assert (found[~kept] == 0).all()


def test_refit_refuses_what_has_no_solution(way: str) -> None:
    gram, targets, kept = _problem(12, 5, 0.6)
    gram[3], gram[:, 3] = gram[2], gram[:, 2]
    gram[3, 3] = gram[2, 2]
    kept[:] = False
    kept[4, 2:4] = True
    with pytest.raises(ValueError, match="row 4 is not positive definite"):
        refit_rows(*_tensors(gram, targets, kept))
    kept[4, 2] = False
    assert np.isfinite(refit_rows(*_tensors(gram, targets, kept)).numpy()).all()


def _eliminated(w: np.ndarray, kept: np.ndarray, factor: np.ndarray, keep: int, of: int) -> tuple[np.ndarray, ...]:
    w, kept, errors = w.copy(), kept.copy(), np.zeros_like(w)
    for row in range(len(w)):
        for j in range(w.shape[1]):
            if of and j % of == 0 and j + of <= w.shape[1]:
                costs = [(kept[row, i], (w[row, i] / factor[i, i]) ** 2, i) for i in range(j, j + of)]
                for _, _, i in sorted(costs)[: of - keep]:
                    kept[row, i] = False
            if not kept[row, j]:
                errors[row, j] = w[row, j] / factor[j, j]
                w[row, j:] -= errors[row, j] * factor[j, j:]
                w[row, j] = 0
    return w, kept, errors


@pytest.mark.parametrize(
    ("width", "keep", "of"), [(1, 0, 0), (13, 0, 0), (64, 0, 0), (16, 2, 4), (18, 1, 4), (9, 3, 8)]
)
def test_columns_are_eliminated_in_order(way: str, width: int, keep: int, of: int) -> None:
    gram, w, kept = _problem(width, 7, 0.9 if of else 0.5)
    factor = np.linalg.cholesky(np.linalg.inv(gram)).T.copy()
    weights, mask, upper = _tensors(w, kept, factor)
    errors = eliminate_columns(weights, mask, upper, keep, of)
    expected = _eliminated(w, kept, factor, keep, of)
    for got, wanted in zip((weights, mask, errors), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-9, atol=1e-11)


def _greedy(gram: np.ndarray, w: np.ndarray, kept: np.ndarray, keep: int, of: int) -> list[tuple[int, float]]:
    """By definition: what removing each column adds to the error of the best fit without it; no inverse is updated."""
    columns = len(w)

    def best(on: list[int]) -> float:
        off = [q for q in range(columns) if q not in on]
        schur = gram[np.ix_(off, off)]
        if on:
            schur = schur - gram[np.ix_(off, on)] @ np.linalg.solve(gram[np.ix_(on, on)], gram[np.ix_(on, off)])
        return float(w[off] @ schur @ w[off])

    on, found = [q for q in range(columns) if kept[q]], []
    while True:
        free = [
            q for q in on if not of or (q // of * of + of <= columns and sum(i // of == q // of for i in on) > keep)
        ]
        if not free:
            return found
        now = best(on)
        cost, q = min((best([i for i in on if i != q]) - now, q) for q in free)
        on.remove(q)
        found.append((q, cost))


@pytest.mark.parametrize(
    ("columns", "density", "keep", "of"), [(1, 1, 0, 0), (9, 1, 0, 0), (12, 0.8, 2, 4), (11, 0.7, 1, 4)]
)
def test_elimination_takes_the_cheapest_first(way: str, columns: int, density: float, keep: int, of: int) -> None:
    gram, w, kept = _problem(columns, 4, density, seed=3)
    inverse = np.linalg.inv(gram)
    order, costs, counts = elimination_order(*_tensors(inverse, w, kept), keep, of)
    for row in range(len(w)):
        expected = _greedy(gram, w[row], kept[row], keep, of)
        assert order[row, : counts[row]].tolist() == [q for q, _ in expected]
        np.testing.assert_allclose(costs[row, : counts[row]].numpy(), [c for _, c in expected], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 1000))
def test_no_other_weights_on_the_support_do_better(columns: int, density: float, seed: int) -> None:
    gram, w, kept = _problem(columns, 3, density, seed)
    fit = refit_rows(*_tensors(gram, w @ gram, kept)).numpy()
    other = np.where(kept, fit + 0.1 * np.random.default_rng(seed).standard_normal(w.shape), 0)

    def error(new: np.ndarray) -> np.ndarray:
        return np.einsum("ri,ij,rj->r", w - new, gram, w - new)

    assert (error(fit) <= error(other) + 1e-9).all()
    assert (error(fit) <= error(np.where(kept, w, 0)) + 1e-9).all()


def _bad_calls() -> list[tuple[Callable[[], object], str]]:
    eye, rows = torch.eye(3).double(), torch.ones(2, 3).double()
    mask = torch.ones(2, 3, dtype=torch.bool)
    return [
        (lambda: refit_rows(eye.float(), rows, mask), "expected a float64 matrix"),
        (lambda: refit_rows(eye, rows[:, :2], mask), "shapes do not fit"),
        (lambda: elimination_order(eye, rows, mask.int()), "shapes do not fit"),
        (lambda: eliminate_columns(rows, mask.clone(), eye, 3, 2), "0 <= keep <= of"),
        (lambda: eliminate_columns(torch.ones(3, 2).double().t(), mask, eye), "contiguous"),
    ]


@pytest.mark.parametrize(("call", "message"), _bad_calls())
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@needs_core
def test_threads_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    gram, w, kept = _problem(30, 50, 0.5)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(solve, "usable_threads", lambda threads=threads: threads)
        found.append(refit_rows(*_tensors(gram, w, kept)))
    assert torch.equal(*found)
