"""pack_bits, unpack_bits, count_bits: the core on every instruction set, and the torch references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur import native
from secateur.native import bits as room
from secateur.native.loading import core
from tests.native.oracle import SIZES, instruction_sets, packed, random_mask


@pytest.fixture(params=["core", "reference"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "reference":
        monkeypatch.setattr(room, "core", None)
    elif core is None:
        pytest.skip("the C++ core is absent")
    return request.param


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", SIZES)
def test_kernels_of_every_instruction_set(isa: str, n: int, density: float) -> None:
    table, mask = core.table(isa), random_mask(n, density)
    for offset in (0, 1, 3):  # the bytes need not be aligned
        bools = np.concatenate([np.zeros(offset, bool), mask])
        bits = np.full(offset + (n + 7) // 8 + 1, 0xA5, np.uint8)
        table.pack(bools.ctypes.data + offset, n, bits.ctypes.data + offset)
        assert (bits[offset:-1] == packed(mask)).all()
        back = np.full(offset + n + 1, 7, np.uint8)
        table.unpack(bits.ctypes.data + offset, n, back.ctypes.data + offset)
        assert (back[offset:-1] == mask).all()
        assert table.popcount(bits.ctypes.data + offset, n) == mask.sum()
        assert bits[-1] == 0xA5
        assert back[-1] == 7
        assert (bits[:offset] == 0xA5).all()


@pytest.mark.parametrize("isa", instruction_sets())
def test_any_nonzero_byte_is_true(isa: str) -> None:
    bools = np.arange(300, dtype=np.uint8)  # 255, 0, 1 ... wrap around
    bits = np.zeros(38, np.uint8)
    core.table(isa).pack(bools.ctypes.data, 300, bits.ctypes.data)
    assert (bits == packed(bools != 0)).all()


@pytest.mark.parametrize("isa", instruction_sets())
def test_spare_bits_are_not_counted(isa: str) -> None:
    ones = np.full(40, 0xFF, np.uint8)
    assert [core.table(isa).popcount(ones.ctypes.data, n) for n in range(130)] == list(range(130))


@pytest.mark.parametrize("n", SIZES)
def test_public_functions(either: str, n: int) -> None:
    mask = random_mask(n, 0.3)
    bits = native.pack_bits(torch.from_numpy(mask))
    assert bits.dtype == torch.uint8
    assert (bits.numpy() == packed(mask)).all()
    assert (native.unpack_bits(bits, n).numpy() == mask).all()
    assert native.unpack_bits(bits, n).dtype == torch.bool
    assert native.count_bits(bits, n) == mask.sum()


@given(st.lists(st.booleans(), max_size=600), st.booleans())
def test_round_trip(values: list[bool], reference: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if reference:
            patch.setattr(room, "core", None)
        bits = native.pack_bits(torch.tensor(values, dtype=torch.bool))
        assert len(bits) == (len(values) + 7) // 8
        assert native.unpack_bits(bits, len(values)).tolist() == values
        assert native.count_bits(bits, len(values)) == sum(values)


def test_a_view_is_packed_in_its_own_order(either: str) -> None:
    mask = torch.from_numpy(random_mask(60, 0.5)).view(4, 15)
    assert native.pack_bits(mask.t()).tolist() == packed(mask.t().numpy().reshape(-1)).tolist()
    assert native.pack_bits(mask[:, 3:9]).tolist() == packed(mask[:, 3:9].numpy().reshape(-1)).tolist()


def test_bits_that_are_a_view(either: str) -> None:
    bits = torch.arange(20, dtype=torch.uint8)[::2]
    assert native.count_bits(bits, 80) == sum(int(b).bit_count() for b in range(0, 20, 2))
    assert native.unpack_bits(bits, 80)[8:16].tolist() == [False, True] + [False] * 6


@pytest.mark.parametrize(
    ("bits", "numel", "message"),
    [
        (torch.zeros(2, dtype=torch.uint8), 17, r"expected uint8 of shape \(3,\) for 17 elements"),
        (torch.zeros(2, dtype=torch.int8), 16, "torch.int8"),
        (torch.zeros(1, 2, dtype=torch.uint8), 16, r"shape \(1, 2\)"),
        (torch.zeros(0, dtype=torch.uint8), -1, "numel: expected 0 or more, got -1"),
    ],
)
def test_wrong_bits_are_refused(bits: torch.Tensor, numel: int, message: str) -> None:
    for function in (native.unpack_bits, native.count_bits):
        with pytest.raises(ValueError, match=message):
            function(bits, numel)


def test_a_mask_must_be_bool() -> None:
    with pytest.raises(ValueError, match=r"expected dtype bool, got torch.float32 of shape \(3,\)"):
        native.pack_bits(torch.ones(3))
