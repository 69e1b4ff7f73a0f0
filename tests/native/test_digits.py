"""Histograms over the bits of floats: counted one by one, by Python's own idea of a float's bits and order."""

from __future__ import annotations

import struct
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur import native
from secateur.native import digits
from secateur.native.loading import core
from tests.native.oracle import SIZES, instruction_sets

FORMS = {torch.float32: ("<f", "<I", 32), torch.float64: ("<d", "<Q", 64)}
PLACES = [(torch.float32, 16), (torch.float32, 0), *[(torch.float64, shift) for shift in (48, 32, 16, 0)]]


def place(value: float, dtype: torch.dtype) -> int:
    """A float's place among all of its type: negative ones count down from -1."""
    as_float, as_bits, size = FORMS[dtype]
    (bits,) = struct.unpack(as_bits, struct.pack(as_float, value))
    return bits if bits < 1 << (size - 1) else -1 - (bits - (1 << (size - 1)))


def expected(values: list[float], dtype: torch.dtype, shift: int, prefix: int | None) -> tuple[dict[int, int], int]:
    places = [place(value, dtype) for value in values]
    if prefix is None:
        return dict(Counter((one >> shift) + 32768 for one in places)), 0
    inside = [one for one in places if one >> (shift + 16) == prefix]
    above = sum(one >> (shift + 16) > prefix for one in places)
    return dict(Counter((one >> shift) % 65536 for one in inside)), above


def found(counts: torch.Tensor) -> dict[int, int]:
    return {int(at): int(counts[at]) for at in counts.nonzero().flatten()}


def some_values(n: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    values = torch.randn(n, dtype=dtype, generator=generator)
    values[::3] = values[::3].mul(1e-3).add(1.5)  # many in one bin
    values[1::7] = -0.0
    values[2::7] = 0.0
    return values


def prefixes(values: torch.Tensor, shift: int) -> list[int | None]:
    """Of the highest bits, none; else one that occurs, that of +0, and that of -0."""
    if shift == 8 * values.itemsize - 16:
        return [None]
    seen = [place(value, values.dtype) >> (shift + 16) for value in values[:1].tolist()]
    return [*seen, 0, -1]


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(("dtype", "shift"), PLACES, ids=str)
def test_kernels_of_every_instruction_set(isa: str, dtype: torch.dtype, shift: int) -> None:
    for n in SIZES:
        values = some_values(n, dtype)
        for prefix in prefixes(values, shift):
            counts = np.ones(65536, np.int64)
            given = values.data_ptr(), values.itemsize, n, shift, prefix or 0
            above = core.table(isa).digits(*given, counts.ctypes.data)
            got = found(torch.from_numpy(counts - 1))
            assert (got, above) == expected(values.tolist(), dtype, shift, prefix)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(("dtype", "shift"), PLACES, ids=str)
def test_public_function(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shift: int, reference: bool) -> None:
    if reference:
        monkeypatch.setattr(digits, "core", None)
    values = some_values(1_000, dtype)
    for prefix in prefixes(values, shift):
        counts = torch.zeros(native.BINS, dtype=torch.int64)
        above = sum(native.count_digits(part, shift, prefix, counts) for part in (values[:1], values[1:]))
        assert (found(counts), above) == expected(values.tolist(), dtype, shift, prefix)


def test_values_with_gaps_between_them() -> None:
    values = some_values(200, torch.float32)
    counts = torch.zeros(native.BINS, dtype=torch.int64)
    native.count_digits(values.view(20, 10)[:, 3], 16, None, counts)
    assert found(counts) == expected(values[3::10].tolist(), torch.float32, 16, None)[0]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2))
def test_order_is_that_of_floats(values: list[float]) -> None:
    ordered = native.in_order(torch.tensor(values).view(torch.int32))
    assert torch.equal(native.in_order(ordered).view(torch.float32), torch.tensor(values))
    for one, other, first, second in zip(values, values[1:], ordered.tolist(), ordered[1:].tolist(), strict=False):
        assert one == other or (one < other) == (first < second)


def test_refusals() -> None:
    counts = torch.zeros(native.BINS, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"float32 or float64, got torch\.bfloat16"):
        native.count_digits(torch.ones(2, dtype=torch.bfloat16), 0, None, counts)
    for shift, prefix in ((16, 3), (0, None)):
        with pytest.raises(ValueError, match=r"the highest 16 bits begin at 16 and have no prefix"):
            native.count_digits(torch.ones(2), shift, prefix, counts)
    for wrong in (counts.int(), counts[:-1], torch.zeros(2 * native.BINS, dtype=torch.int64)[::2]):
        with pytest.raises(ValueError, match=r"counts: expected contiguous int64 \[65536\] on the CPU, got"):
            native.count_digits(torch.ones(2), 16, None, wrong)
    if core is not None:
        with pytest.raises(ValueError, match="floats of 4 or 8 bytes"):
            core.active.digits(0, 2, 0, 0, 0, 0)
        with pytest.raises(ValueError, match="below the size"):
            core.active.digits(0, 4, 0, 32, 0, 0)
