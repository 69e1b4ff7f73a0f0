"""n of m: the highest stay, the lower index of a tie goes, tails stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur import native
from secateur.native import groups
from secateur.native.loading import core
from tests.native.oracle import instruction_sets, select

LEVELS = np.array([-np.inf, -2.5, -0.0, 0.0, 1e-42, 1.0, 2.0, np.inf], dtype=np.float32)
PATTERNS = [(0, 1), (1, 1), (1, 2), (2, 4), (1, 4), (4, 4), (0, 4), (2, 3), (3, 5), (4, 8), (5, 16), (7, 32)]


def scores_of(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(LEVELS, (rows, cols))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(("keep", "of"), PATTERNS)
def test_kernels_of_every_instruction_set(isa: str, keep: int, of: int) -> None:
    for rows, cols in [(0, 8), (1, 0), (3, 1), (2, 4), (3, 21), (2, 64), (5, 130)]:
        scores = scores_of(rows, cols)
        kept = np.full(rows * cols + 1, 9, np.uint8)
        core.table(isa).nm_select(scores.ctypes.data, rows, cols, keep, of, kept.ctypes.data)
        assert kept[:-1].tolist() == [k for row in scores.tolist() for k in select(row, keep, of)]
        assert kept[-1] == 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("keep", "of"), PATTERNS)
@pytest.mark.parametrize("reference", [False, True])
def test_public_function(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, keep: int, of: int, reference: bool
) -> None:
    if reference:
        monkeypatch.setattr(groups, "core", None)
    scores = torch.from_numpy(scores_of(4, 37)).to(dtype)
    kept = native.nm_select(scores, keep, of)
    assert kept.dtype == torch.bool
    assert kept.tolist() == [select(row, keep, of) for row in scores.tolist()]


@given(st.data())
def test_law(data: st.DataObject) -> None:
    of = data.draw(st.integers(1, 9))
    keep = data.draw(st.integers(0, of))
    cols = data.draw(st.integers(0, 40))
    level = st.sampled_from([-1.0, 0.0, 0.5, 1.0])
    row = data.draw(st.lists(level, min_size=cols, max_size=cols))
    kept = native.nm_select(torch.tensor([row], dtype=torch.float32).view(1, cols), keep, of)
    assert kept.tolist() == [select(row, keep, of)]
    assert int(kept.sum()) == cols // of * keep + cols % of


def test_float64_keeps_its_own_order() -> None:
    scores = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)  # equal in float32
    assert native.nm_select(scores.flip(1), 1, 2).tolist() == [[True, False]]


def test_strided_scores() -> None:
    scores = torch.from_numpy(scores_of(12, 8))
    assert native.nm_select(scores.t(), 2, 4).tolist() == [select(row, 2, 4) for row in scores.t().tolist()]


@pytest.mark.parametrize(
    ("scores", "keep", "of", "message"),
    [
        (torch.ones(2, 4), 5, 4, "keep=5, of=4: expected 0 <= keep <= of"),
        (torch.ones(2, 4), -1, 4, "keep=-1"),
        (torch.ones(2, 4), 0, 0, "of >= 1"),
        (torch.ones(4), 2, 4, r"floating matrix, got torch.float32 of shape \(4,\)"),
        (torch.ones(2, 4, dtype=torch.int32), 2, 4, "torch.int32"),
        (torch.tensor([[1.0, float("nan")]]), 1, 2, r"scores of shape \(1, 2\) hold NaN"),
    ],
)
def test_refused(scores: torch.Tensor, keep: int, of: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.nm_select(scores, keep, of)


@pytest.mark.skipif(core is None, reason="the C++ core is absent")
@pytest.mark.parametrize(("keep", "of"), [(1, 0), (3, 2)])
def test_the_core_refuses_what_it_would_not_survive(keep: int, of: int) -> None:
    with pytest.raises(ValueError, match="keep of"):
        core.active.nm_select(0, 0, 0, keep, of, 0)
