"""What the kept weights do when others go: the minimum of the quadratic model, in every block."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.core.blocks import compensated, in_blocks, out_of_blocks

F64 = torch.float64


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 9), st.floats(0.0, 1.0))
def test_kept_weights_are_at_the_minimum_and_removed_ones_at_zero(
    seed: int, blocks: int, size: int, share: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(blocks, size, size, generator=g, dtype=F64)
    h = root @ root.transpose(1, 2) + 0.1 * torch.eye(size, dtype=F64)
    w = torch.randn(blocks, size, generator=g, dtype=F64)
    removed = torch.rand(blocks, size, generator=g) < share
    made = compensated(w, removed, torch.linalg.inv(h))
    assert bool((made[removed] == 0).all())
    slope = torch.einsum("bij,bj->bi", h, made - w)
    assert torch.allclose(slope[~removed], torch.zeros(1, dtype=F64), atol=1e-6)


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_weights_that_are_zero_stay_zero_and_do_not_disturb(seed: int, size: int) -> None:
    """Their rows of the inverse may be zero: they are gone already."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=g, dtype=F64)
    h = root @ root.T + 0.1 * torch.eye(size, dtype=F64)
    w = torch.randn(size, generator=g, dtype=F64)
    w[0] = 0
    inverse = torch.zeros(size, size, dtype=F64)
    inverse[1:, 1:] = torch.linalg.inv(h[1:, 1:])
    removed = torch.rand(size, generator=g) < 0.5
    made = compensated(w[None], removed[None], inverse[None])[0]
    alone = compensated(w[None, 1:], removed[None, 1:], inverse[None, 1:, 1:])[0]
    assert float(made[0]) == 0
    assert torch.allclose(made[1:], alone, atol=1e-9)


@given(st.integers(1, 40), st.integers(1, 50))
def test_blocks_come_back(elements: int, block: int) -> None:
    tensor = torch.arange(elements)
    cut = in_blocks(tensor, block)
    assert cut.shape[1] == min(block, elements)
    assert torch.equal(out_of_blocks(cut, (elements,)), tensor)
