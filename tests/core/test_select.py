from __future__ import annotations

import pytest
import torch

from secateur.core import check_scores, keep_top, parse_unit, removed_count, select
from secateur.types import NM, KeyLayout
from tests.oracles.core_oracles import as_list, kept_by_sorting, nm_mask, row_mask

LAYOUTS = {
    "linear": KeyLayout((5, 11)),
    "conv": KeyLayout((4, 6, 2, 3), kind="conv"),
    "grouped": KeyLayout((6, 4, 3), kind="conv", groups=2),
    "transposed": KeyLayout((6, 2, 2, 3), kind="conv_transpose", groups=2),
}


def _scores(layout: KeyLayout, seed: int = 0, levels: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, levels, layout.shape, generator=generator).float()


@pytest.mark.parametrize(
    ("n", "sparsity", "removed"),
    [(10, 0.9, 9), (100, 0.145, 15), (3, 1 / 6, 1), (10, 0.25, 3), (10, 0.05, 1), (1000, 0.0005, 1), (10, 0.0499, 0)],
)
def test_counts_round_halves_up_as_written(n: int, sparsity: float, removed: int) -> None:
    assert removed_count(n, sparsity) == removed


def test_counts_at_the_ends_and_outside() -> None:
    assert (removed_count(10**9, 0.0), removed_count(10**9, 1.0), removed_count(0, 0.5)) == (0, 10**9, 0)
    assert removed_count(10**9, 0.9) == 900_000_000
    for wrong in (-0.1, 1.1, 90, float("nan"), "half"):
        with pytest.raises(ValueError, match="share of units removed"):
            removed_count(10, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["random", "few levels", "all equal", "ascending", "descending", "organ pipe"])
def test_two_million_scores_like_a_stable_sort(order: str) -> None:
    n = 2_000_000
    generator = torch.Generator().manual_seed(0)
    scores = {
        "random": lambda: torch.rand(n, generator=generator),
        "few levels": lambda: torch.randint(0, 7, (n,), generator=generator).float(),
        "all equal": lambda: torch.zeros(n),
        "ascending": lambda: torch.arange(n).float(),
        "descending": lambda: -torch.arange(n).float(),
        "organ pipe": lambda: torch.cat([torch.arange(n // 2), torch.arange(n // 2).flip(0)]).float(),
    }[order]()
    ascending = scores.argsort(stable=True)
    for keep in (n // 50, n // 2 + 1, n - 7):
        expected = torch.ones(n, dtype=torch.bool)
        expected[ascending[: n - keep]] = False
        assert torch.equal(keep_top(scores, keep), expected)


def test_ties_fall_from_the_front() -> None:
    assert as_list(keep_top(torch.tensor([2.0, 1.0, 1.0, 1.0]), 2)) == [True, False, False, True]
    assert as_list(keep_top(torch.tensor([0.0, -0.0, 0.0]), 1)) == [False, False, True]
    assert as_list(keep_top(torch.zeros(3), 0)) == [False] * 3
    assert as_list(keep_top(torch.zeros(3), 3)) == [True] * 3


def test_scores_that_have_no_order_are_refused_by_name() -> None:
    bad = torch.tensor([1.0, float("nan"), float("inf"), float("-inf")])
    with pytest.raises(ValueError, match=r"'fc2.weight': 1 of 4 are NaN and 2 infinite") as caught:
        select({"fc1.weight": torch.ones(2), "fc2.weight": bad}, {"fc1.weight": 1, "fc2.weight": 1})
    assert "exclude=['fc2.weight']" in str(caught.value)
    check_scores({"fc": torch.tensor([3.4e38, -3.4e38])})


def test_removed_units_stay_removed() -> None:
    scores = torch.tensor([9.0, 8.0, 1.0, 2.0])
    before = torch.tensor([False, True, True, True])
    mask = select({"p": scores}, {"p": 2}, previous={"p": before})["p"]
    assert as_list(mask) == [False, True, False, True]
    with pytest.raises(ValueError, match=r"kept only 3 of 4 units"):
        select({"p": scores}, {"p": 4}, previous={"p": before})
    with pytest.raises(ValueError, match=r"previous mask of 'p' has shape \(3,\)"):
        select({"p": scores}, {"p": 1}, previous={"p": before[:3]})


@pytest.mark.parametrize("keep", [-1, 5])
def test_impossible_counts_are_refused(keep: int) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 4"):
        select({"p": torch.rand(4)}, {"p": keep})


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_against_the_definition(name: str) -> None:
    layout = LAYOUTS[name]
    scores = _scores(layout)
    n = scores.numel()
    for keep in (0, n // 10, n // 3, n // 2, n - 2, n):
        mask = select({"p": scores}, {"p": keep}, within="row", layout={"p": layout})["p"]
        assert mask.shape == layout.shape
        assert as_list(mask) == row_mask(scores, layout, keep)


def test_rows_of_coarser_units_and_of_none() -> None:
    layout = {"p": LAYOUTS["conv"]}
    unit, _ = parse_unit("kernel")
    scores = unit.pool({"p": _scores(layout["p"])}, layout)
    mask = select(scores, {"p": 12}, within="row", layout=layout)["p"]
    assert mask.sum(1).tolist() == [3, 3, 3, 3]
    with pytest.raises(ValueError, match="each output row has one unit"):
        select({"p": torch.rand(4)}, {"p": 2}, within="row", layout=layout)


def test_rows_keep_what_the_past_left_them() -> None:
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    before = torch.tensor([[False, False, False, True], [True, True, True, True]])
    mask = select({"p": scores}, {"p": 4}, within="row", previous={"p": before})["p"]
    assert mask.tolist() == [[False, False, False, True], [True, True, False, False]]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(1, 2), NM(3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_n_of_m_against_the_definition(name: str, pattern: NM, dtype: torch.dtype) -> None:
    layout = LAYOUTS[name]
    scores = _scores(layout, seed=3).to(dtype)
    mask = select({"p": scores}, {}, within=pattern, layout={"p": layout})["p"]
    assert as_list(mask) == nm_mask(scores, layout, pattern.keep, pattern.of)


def test_n_of_m_with_a_past_and_its_refusals() -> None:
    layout = {"p": KeyLayout((1, 5))}
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]])
    before = torch.tensor([[False, True, True, True, False]])
    mask = select({"p": scores}, {}, within=NM(2, 4), layout=layout, previous={"p": before})["p"]
    assert as_list(mask) == [False, True, True, False, False]
    with pytest.raises(ValueError, match="give layout="):
        select({"p": scores}, {}, within=NM(2, 4))
    with pytest.raises(ValueError, match="take unit='weight'"):
        select({"p": torch.rand(5)}, {}, within=NM(2, 4), layout=layout)
    with pytest.raises(ValueError, match="take 'tensor', 'row' or NM"):
        select({"p": scores}, {"p": 1}, within="column")  # type: ignore[arg-type]


def test_float64_differences_that_float32_cannot_see_count() -> None:
    scores = torch.tensor([1.0 + 2e-12, 1.0 + 1e-12, 1.0], dtype=torch.float64)
    assert as_list(select({"p": scores}, {"p": 1})["p"]) == kept_by_sorting(scores.tolist(), 1)
    nm = select({"p": scores[None, :2]}, {}, within=NM(1, 2), layout={"p": KeyLayout((1, 2))})["p"]
    assert as_list(nm) == [True, False]
