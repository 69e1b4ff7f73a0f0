"""The apply kernels: bit patterns are kept or become +0, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.native.loading import core
from tests.native.oracle import DTYPES, SIZES, awkward_values, bits_tensor, instruction_sets, masked, random_mask, raw


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_bit_exact_on_every_instruction_set(isa: str, dtype: torch.dtype, n: int) -> None:
    table = core.table(isa)
    for density in (0.0, 0.1, 0.9, 1.0):
        mask = random_mask(n, density)
        bits = bits_tensor(mask)
        for offset in (0, 1, 3):
            memory = awkward_values(n + offset + 2, dtype)
            before = raw(memory.clone())
            values = memory[offset : offset + n]
            expected = masked(values, mask)
            for _ in range(2):  # the second time all is clean already
                table.apply(values.data_ptr(), dtype.itemsize, bits.data_ptr(), n)
                assert (raw(values) == expected).all()
            assert (raw(memory)[:offset] == before[:offset]).all()
            assert (raw(memory)[offset + n :] == before[offset + n :]).all()


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_dirty_element_is_found_anywhere(isa: str, dtype: torch.dtype) -> None:
    table, n = core.table(isa), 200
    nothing_kept = torch.zeros(25, dtype=torch.uint8)
    for at in range(n):
        for value in (1.0, -0.0, float("nan")):
            values = torch.zeros(n, dtype=dtype)
            values[at] = value
            table.apply(values.data_ptr(), dtype.itemsize, nothing_kept.data_ptr(), n)
            assert not raw(values).any(), (at, value)


@pytest.mark.parametrize("isa", instruction_sets())
def test_clean_memory_is_not_written(isa: str) -> None:
    """A page that cannot be written: one store would end the process, so this proves that there is none."""
    from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, mmap

    page = mmap(-1, 4096, flags=MAP_PRIVATE | MAP_ANONYMOUS, prot=PROT_READ)
    address = np.frombuffer(page, dtype=np.uint8).ctypes.data
    bits = bits_tensor(random_mask(2048, 0.5))
    for itemsize in (2, 4, 8):
        core.table(isa).apply(address, itemsize, bits.data_ptr(), 4096 // itemsize - 3)
    assert page[:] == bytes(4096)


@pytest.mark.skipif(core is None, reason="the C++ core is absent")
@pytest.mark.parametrize("itemsize", [0, 1, 3, 16])
def test_other_element_sizes_are_refused(itemsize: int) -> None:
    with pytest.raises(ValueError, match="2, 4 or 8 bytes"):
        core.active.apply(0, itemsize, 0, 0)
