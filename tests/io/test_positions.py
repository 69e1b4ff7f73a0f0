from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.io.positions import PositionCode, decode, encode
from secateur.model.summary import _mask_bytes as mask_bytes  # pyright: ignore[reportPrivateUsage]
from tests.io.rice import read_rice, smallest_rice, write_rice

DENSITIES = [0.0, 0.001, 0.01, 0.1, 0.2, 0.3, 0.38, 0.5, 0.8, 0.9, 0.995, 1.0]

SIXTEENS = [0x10, 0x42, 0x08, 0x21, 0x84] * 2 + [0x10, 0x42, 0x08]
"""Twenty times 00001: the lowest five bits of 16 and of 48."""


def mask_of(n: int, *positions: int) -> Tensor:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[list(positions)] = True
    return mask


def random_mask(n: int, density: float, seed: int, run: int = 1) -> Tensor:
    """Runs of ``run`` equal elements, each kept with this probability."""
    kept = torch.rand(-(-n // run), generator=torch.Generator().manual_seed(seed)) < density
    return kept.repeat_interleave(run)[:n]


def by_hand(mask: Tensor) -> tuple[str, str, list[int], list[int]]:
    """Coding, side, listed positions and bytes of a mask, one element at a time."""
    flags = mask.reshape(-1).tolist()
    side = "kept" if sum(flags) * 2 <= len(flags) else "removed"
    positions = [i for i, flag in enumerate(flags) if flag == (side == "kept")]
    rice = smallest_rice(positions)
    if len(rice) < math.ceil(len(flags) / 8):
        return "rice", side, positions, rice
    bits = [sum(flag << i for i, flag in enumerate(flags[j : j + 8])) for j in range(0, len(flags), 8)]
    return "bits", "kept", [i for i, flag in enumerate(flags) if flag], bits


@settings(max_examples=50, deadline=None)
@given(
    st.one_of(st.integers(0, 64), st.integers(0, 5000)),
    st.sampled_from(DENSITIES),
    st.sampled_from([1, 1, 5, 300]),
    st.integers(0, 9999),
)
def test_every_byte_is_as_the_format_says_and_the_mask_comes_back(n: int, density: float, run: int, seed: int) -> None:
    mask = random_mask(n, density, seed, run)
    coding, side, positions, stored = by_hand(mask)
    code, found = encode(mask)
    assert found.dtype is torch.uint8
    assert (code.coding, code.side, code.count, found.tolist()) == (coding, side, len(positions), stored)
    assert code.kept == int(mask.sum())
    assert torch.equal(decode(code, found), mask)


@pytest.mark.parametrize("density", [0.3, 0.03, 0.0004])
@pytest.mark.parametrize("run", [1, 40])
def test_masks_of_many_blocks_come_back(density: float, run: int) -> None:
    mask = random_mask(1_000_003, density, 3, run)
    mask[400_000:990_000] = False  # blocks with no position at all where k is small
    code, stored = encode(mask)
    assert code.coding == "rice"
    assert torch.equal(decode(code, stored), mask)


def test_blocks_without_a_position_are_passed_over() -> None:
    stored = torch.tensor([0] + [0] * 20_000 + [128], dtype=torch.uint8)
    found = decode(PositionCode((200_000,), "rice", "kept", 1), stored)
    assert found.nonzero().tolist() == [[160_007]]


@pytest.mark.parametrize(
    ("mask", "coding", "side", "stored"),
    [
        (mask_of(16, 0, 3, 8, 9, 10, 11, 12, 15), "bits", "kept", [0b00001001, 0b10011111]),
        # gaps 3 and 396 = 3 * 128 + 12: ones after 0 and after 3 zeros; 1100000 and 0011000
        (mask_of(1000, 3, 400), "rice", "kept", [7, 0b10001, 0b00000011, 0b00000110]),
        (~mask_of(1000, 3, 400), "rice", "removed", [7, 0b10001, 0b00000011, 0b00000110]),
        # gap 150000 = 2 * 2^16 + 18928; k = 17 has one zero less, as many bits: the smaller k is taken
        (mask_of(200000, 150000), "rice", "kept", [16, 0b100, 18928 % 256, 18928 // 256]),
        (mask_of(4000, 7), "rice", "kept", [2, 0b10, 0b11]),
        (mask_of(4000, 0), "rice", "kept", [0, 0b1]),
        # clustered: gaps 8 and eleven of 0; k = 0 needs 20 bits, k = 1 needs 28
        (mask_of(4000, *range(8, 20)), "rice", "kept", [0, 0, 0xFF, 0x0F]),
        # half of all: the kept ones are listed
        (mask_of(64, *range(32)), "rice", "kept", [0, 0xFF, 0xFF, 0xFF, 0xFF]),
        # nineteen gaps of 16 and one of 48: k = 5 needs 121 bits, k = 4 needs 122; 20 << 5 is beyond all 372 elements
        (mask_of(372, *range(16, 339, 17), 371), "rice", "kept", [5, 0xFF, 0xFF, 0b10111, *SIXTEENS]),
        (mask_of(9), "rice", "kept", [0]),
        (~mask_of(9), "rice", "removed", [0]),
        (mask_of(8), "bits", "kept", [0]),
        (mask_of(0), "bits", "kept", []),
    ],
)
def test_codings_by_hand(mask: Tensor, coding: str, side: str, stored: list[int]) -> None:
    code, found = encode(mask)
    assert (code.coding, code.side, found.tolist()) == (coding, side, stored)
    assert torch.equal(decode(code, found), mask)


def entropy_bytes(n: int, count: int) -> float:
    share = count / n
    return -n / 8 * (share * math.log2(share) + (1 - share) * math.log2(1 - share))


@pytest.mark.parametrize("sparsity", [0.01, 0.1, 0.3, 0.5, 0.6, 0.62, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_random_masks_cost_their_entropy_and_are_estimated_so(sparsity: float) -> None:
    n = 300_000
    removed = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: int(sparsity * n)]
    mask = torch.ones(n, dtype=torch.bool)
    mask[removed] = False
    found = encode(mask)[1].numel()
    assert found <= n // 8
    assert entropy_bytes(n, removed.numel()) <= found <= 1.05 * entropy_bytes(n, removed.numel())
    assert found == pytest.approx(mask_bytes(n, n - removed.numel()), rel=0.02)


def test_the_estimate_of_masks_without_a_gap() -> None:
    for mask in (mask_of(0), mask_of(3), mask_of(900), ~mask_of(900)):
        assert mask_bytes(mask.numel(), int(mask.sum())) == encode(mask)[1].numel()


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
    mask = mask_of(240, 1, 2, 3, 9, 17).view(4, 60).t()
    code, stored = encode(mask)
    assert code.coding == "rice"
    assert torch.equal(decode(code, stored), mask)


def rice(n: int, count: int, *stored: int) -> tuple[PositionCode, Tensor]:
    return PositionCode((n,), "rice", "kept", count), torch.tensor(stored, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("code", "stored", "message"),
    [
        (*rice(1000, 2), "rice is empty; its first byte"),
        (*rice(1000, 2, 32, 17, 3, 6), "32 low bits per gap, too many for 2 positions among 1000 elements"),
        (*rice(1000, 2, 255, 17, 3, 6), "255 low bits per gap"),
        (*rice(1000, 2, 10, 3, 0, 0, 0), "10 low bits per gap, too many for 2"),
        (*rice(0, 0, 1), "1 low bits per gap, too many for 0 positions among 0"),
        (*rice(1000, 2, 7), "mask of 2 positions with 7 low bits needs 4 bytes or more, found 1"),
        (*rice(1000, 2, 7, 17, 3), "needs 4 bytes or more, found 3"),
        (*rice(1000, 9, 0, 255), "mask of 9 positions with 0 low bits needs 3 bytes or more, found 2"),
        (*rice(1 << 60, 1 << 59, 0, 255), "needs 72057594037927937 bytes or more"),
        (*rice(1000, 2, 7, 16, 3, 6), "lists 1 positions, its record says 2"),
        (*rice(1000, 2, 7, 17 | 128, 3, 6), "lists 3 positions, its record says 2"),
        (*rice(1000, 2, 7, 17, 0, 3, 6), "bytes beyond its last position"),
        (*rice(1000, 0, 0, 0), "bytes beyond its last position"),
        (*rice(1000, 0, 0, 1), "lists 1 positions, its record says 0"),
        (*rice(1000, 2, 7, 17, 3, 6 | 64), "bits set beyond its last low bit"),
        (*rice(1000, 2, 7, 0, 3, 3, 6), "index 1025 or more out of range for 1000"),
        (*rice(1000, 1, 9, 0, 0, 0, 128, 0, 0), "index 15872 or more out of range for 1000"),
        (*rice(400, 2, 7, 17, 3, 6), "index 400 out of range for 400 elements"),
        (*rice(9, 1, 0, 0, 2), "index 9 or more out of range for 9"),
        (PositionCode((1000,), "rice", "kept", 2), torch.tensor([7, 17, 3, 6]), "must be 1-D torch.uint8"),
        (PositionCode((1000,), "rice", "kept", 2), torch.tensor([[7, 17, 3, 6]]).byte(), "1-D"),
        (PositionCode((12,), "bits", "kept", 2), torch.tensor([3, 16]).byte(), "bits set beyond its last"),
        (PositionCode((12,), "bits", "kept", 1), torch.tensor([3, 0]).byte(), "2 bits set, its record says 1"),
        (PositionCode((12,), "bits", "removed", 2), torch.tensor([3, 0]).byte(), "its record says"),
        (PositionCode((17,), "bits", "kept", 2), torch.tensor([3, 0]).byte(), "needs 3 bytes of bits, found 2"),
        (PositionCode((12,), "bits", "kept", 2), torch.tensor([3, 0]).char(), "must be 1-D torch.uint8"),
    ],
)
def test_what_encode_never_makes_is_refused(code: PositionCode, stored: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(code, stored)


def positions_or_refusal(code: PositionCode, stored: Tensor) -> list[int] | str:
    try:
        return decode(code, stored).nonzero().reshape(-1).tolist()
    except ValueError as error:
        return str(error)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_broken_bytes_are_refused_or_read_as_the_format_says(data: st.DataObject) -> None:
    """Thirty broken codes an example: one byte changed, put in or taken out, or another record."""
    n = data.draw(st.integers(1, 300))
    positions = sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=n // 2)))
    chance = data.draw(st.randoms(use_true_random=False))
    good = write_rice(positions, data.draw(st.integers(0, 5)))
    for _ in range(30):
        stored, at = list(good), chance.randrange(len(good))
        count = max(0, len(positions) + chance.choice([0, 0, 0, 1, -1]))
        stored[at : at + chance.choice([0, 1, 1, 1])] = chance.choice(
            [[], [0], [stored[at] ^ 1 << chance.randrange(8)]]
        )
        listed = read_rice(stored, count, n)
        found = positions_or_refusal(*rice(n, count, *stored))
        if isinstance(found, list) or "low bits per gap, too many" not in found:
            assert (found if isinstance(found, list) else None) == listed, f"{stored}: {found}"
