"""The catalogue's worked numbers for entropy, discriminants, ranks and correlation of activations, by their ids."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import secateur as sc
from secateur.core.criteria.correlated import activation_correlation, fit_removed
from tests.golden.test_catalogue_activations import Known

T = torch.tensor
W7_PEAKED = (0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.9)
W7_SPREAD = (0.1, 0.2, 0.35, 0.4, 0.6, 0.7, 0.85, 0.9)
W9 = T([[1.0, 5.0, 2.0], [1.2, 1.0, 2.1], [0.8, 3.0, 1.9], [3.0, 4.0, 2.4], [3.2, 2.0, 2.5], [2.9, 4.0, 2.3]])
W22 = T([[[1.0, 2.0], [2.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])


def _score(criterion: str, x: Tensor, y: Tensor | None = None) -> list[float]:
    """Activations [N, C, H, W], handed on as they are."""
    return sc.score(Known(x.shape[1]), criterion, unit="filter", targets="same", data=[(x, y)])["same.weight"].tolist()


def _maps(rows: Tensor) -> Tensor:
    return rows[:, :, None, None]


def test_w7_entropy_of_activations() -> None:
    ends = (0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0)  # spreads the layer's range to [0, 1]
    x = _maps(T([W7_PEAKED, W7_SPREAD, ends]).t())
    peaked, spread, _ = _score("activation_entropy(bins=4)", x)
    assert (peaked, spread) == (pytest.approx(0.376770, abs=1e-6), pytest.approx(1.386294, abs=1e-6))
    assert peaked < spread, "Luo and Wu prune the peaked one"
    assert _score("activation_entropy(bins=4, prune='high')", x)[1] == pytest.approx(-1.386294, abs=1e-6)
    own = _score("activation_entropy(bins=4, range='unit')", x)
    assert own[1] == pytest.approx(1.320888, abs=1e-6)
    assert _score("activation_entropy(bins=4, range='unit')", 1000 * x)[1] == pytest.approx(own[1])


def test_w9_lda() -> None:
    y = T([0, 0, 0, 1, 1, 1])
    fisher = _score("lda(ridge=0.0)", _maps(W9), y)
    assert fisher == pytest.approx([48.960526, 0.015625, 6.0], rel=1e-4)
    assert _score("lda(ratio='icc', ridge=0.0)", _maps(W9), y) == pytest.approx(
        [0.979984, 0.015385, 0.857143], rel=1e-4
    )
    masks = sc.prune(Known(3), 1 / 3, criterion="lda", unit="filter", targets="same", data=[(_maps(W9), y)])
    assert masks.unit_masks["same.weight"].flatten().tolist() == [True, False, True]


def test_w9_a_constant_unit_scores_zero() -> None:
    x = torch.cat([W9, torch.full((6, 1), 7.0)], 1)
    for spec in ("lda", "lda(full=True)", "lda(ratio='icc')"):
        assert _score(spec, _maps(x), T([0, 0, 0, 1, 1, 1]))[3] == 0.0


def test_w22_hrank() -> None:
    assert _score("hrank", torch.stack([W22, W22])) == [1.0, 2.0, 0.0]


def test_w6_least_squares_of_a_removed_unit() -> None:
    a = T([[0.0, 1.0, 2.0, 3.0], [1.0, 2.9, 5.1, 7.0]], dtype=torch.float64)
    covariance = torch.cov(a, correction=0)
    fits = fit_removed(covariance, a.mean(1), T([True, False]))
    assert (float(fits.alpha), float(fits.beta)) == (pytest.approx(2.02), pytest.approx(0.97))
    r = covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()
    assert float(r) == pytest.approx(0.999559, abs=1e-6)
    distances = pytest.approx([1 - 0.999559, 2.0], abs=1e-6)
    assert activation_correlation(covariance).tolist() == distances, "the one with the larger variance stays"
    assert _score("activation_correlation", _maps(a.t().float())) == distances
