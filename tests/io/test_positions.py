from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.io.positions import PositionCode, decode, encode


def mask_of(n: int, *positions: int) -> Tensor:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[list(positions)] = True
    return mask


def bytes_by_hand(mask: Tensor) -> int:
    """The smallest of all codings, counted one element at a time."""
    flags = mask.reshape(-1).tolist()
    sizes = [(len(flags) + 7) // 8]
    side = sum(flags) * 2 <= len(flags)
    positions = [i for i, flag in enumerate(flags) if flag == side]
    for width, skip in ((1, 255), (2, 65535)):
        codes, last = 0, -1
        for position in positions:
            gap = position - last - 1
            while gap >= skip:
                codes, gap = codes + 1, gap - skip
            codes, last = codes + 1, position
        sizes.append(codes * width)
    return min([*sizes, 4 * len(positions)])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3000), st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.995, 1.0]), st.integers(0, 9999))
def test_the_smallest_coding_is_taken_and_comes_back(n: int, density: float, seed: int) -> None:
    mask = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < density
    code, stored = encode(mask)
    assert stored.numel() * stored.element_size() == bytes_by_hand(mask)
    assert code.kept == int(mask.sum())
    assert torch.equal(decode(code, stored), mask)


@pytest.mark.parametrize(
    ("mask", "coding", "side", "stored"),
    [
        (mask_of(16, 0, 3, 8, 9, 10, 11, 12, 15), "bits", "kept", [0b00001001, 0b10011111]),
        (mask_of(4000, 0, 2, 500), "gap8", "kept", [0, 1, 255, 242]),
        (mask_of(4000, 254), "gap8", "kept", [254]),
        (mask_of(4000, 255), "gap8", "kept", [255, 0]),
        (~mask_of(4000, 7), "gap8", "removed", [7]),
        (mask_of(200000, 1000, 60000), "gap16", "kept", [1000, 58999]),
        (mask_of(200000, 150000), "index32", "kept", [150000]),
        (mask_of(200000, 65535, 65636, 66000, 67000, 68000), "gap16", "kept", [65535, 0, 100, 363, 999, 999]),
        (mask_of(9), "gap8", "kept", []),
        (~mask_of(9), "gap8", "removed", []),
    ],
)
def test_codings_by_hand(mask: Tensor, coding: str, side: str, stored: list[int]) -> None:
    code, found = encode(mask)
    assert (code.coding, code.side, found.tolist()) == (coding, side, stored)
    assert torch.equal(decode(code, found), mask)


def test_shape_and_scalar_masks_come_back() -> None:
    for mask in (
        torch.tensor(True),
        torch.tensor(False),
        torch.ones(0, 4, dtype=torch.bool),
        mask_of(24, 5).view(2, 3, 4),
    ):
        code, stored = encode(mask)
        assert torch.equal(decode(code, stored), mask)


def test_a_transposed_mask_is_stored_in_row_major_order() -> None:
    mask = mask_of(24, 1, 2, 3, 9, 17).view(4, 6).t()
    code, stored = encode(mask)
    assert torch.equal(decode(code, stored), mask)


@pytest.mark.parametrize(
    ("code", "stored", "message"),
    [
        (PositionCode((100,), "index32", "kept", 2), torch.tensor([1, 900]).int(), "index 900 out of range for 100"),
        (PositionCode((100,), "index32", "kept", 2), torch.tensor([-1, 9]).int(), "index -1 out of range for 100"),
        (PositionCode((100,), "index32", "kept", 2), torch.tensor([9, 9]).int(), "do not increase"),
        (PositionCode((100,), "index32", "kept", 3), torch.tensor([1, 9]).int(), "lists 2 positions"),
        (PositionCode((100,), "index32", "kept", 2), torch.tensor([1, 9]), "must be 1-D torch.int32"),
        (PositionCode((100,), "gap8", "removed", 2), torch.tensor([90, 20]).byte(), "index 111 out of range for 100"),
        (PositionCode((1000,), "gap8", "kept", 1), torch.tensor([9, 255]).byte(), "leads nowhere"),
        (PositionCode((1000,), "gap8", "kept", 2), torch.tensor([[9, 5]]).byte(), "1-D"),
        (PositionCode((12,), "bits", "kept", 2), torch.tensor([3, 16]).byte(), "3 bits set|beyond its last"),
        (PositionCode((12,), "bits", "kept", 1), torch.tensor([3, 0]).byte(), "2 bits set, its record says 1"),
        (PositionCode((12,), "bits", "removed", 2), torch.tensor([3, 0]).byte(), "its record says"),
        (PositionCode((17,), "bits", "kept", 2), torch.tensor([3, 0]).byte(), "needs 3 bytes of bits, found 2"),
    ],
)
def test_what_encode_never_makes_is_refused(code: PositionCode, stored: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(code, stored)
