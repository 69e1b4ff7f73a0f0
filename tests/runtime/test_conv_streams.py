"""Packing of convolution weights: there and back, in the order that the kernels count on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from secateur.native.loading import core
from secateur.runtime.columns import Array
from secateur.runtime.conv_cuts import LAYOUTS, Cut, Planes, Window
from secateur.runtime.conv_streams import pack_conv, unpack_conv
from tests.native.oracle import needs_core

KERNELS = [(layout, unit) for layout, units in LAYOUTS.items() for unit in units]


def weight_of(shape: tuple[int, ...], density: float, unit: int = 1) -> tuple[Array, Array]:
    """Weight and mask; blocks of ``unit`` output channels are kept or removed together."""
    generator = np.random.default_rng(sum(shape))
    mask = np.repeat(generator.random((-(-shape[0] // unit), *shape[1:])) < density, unit, axis=0)[: shape[0]]
    return generator.standard_normal(shape).astype(np.float32), mask


@pytest.mark.parametrize(("kernel", "unit"), KERNELS)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.6, 1.0])
def test_there_and_back(kernel: str, unit: int, density: float) -> None:
    windows = [Window(3, 3, 1, 1), Window(1, 1), Window(5, 3, 2, 2), Window(3, 3, 3, 1, 2), Window(3, 3, 1, 1, 1, 3)]
    for window, (block, chunk) in itertools.product(windows, [(1, 4), (4, 8), (100, 400)]):
        x = Planes(12, 17, 15, window.padding)
        y = window.output(15, x, window.padding)
        weight, mask = weight_of((15, 12 // window.groups, window.height, window.width), density)
        if kernel == "blocks":
            mask = np.concatenate(
                [np.repeat(part[::unit], unit, axis=0)[: len(part)] for part in parts(mask, window.groups, chunk)]
            )
        for direct in (True, False) if window.step == 1 else (False,):
            cut = Cut(kernel, unit, direct, 16, 4, block, chunk)
            streams = pack_conv(weight, mask, cut, x, y, window)
            assert [stream.dtype for stream in streams] == [np.uint16, np.uint16, np.float32]
            assert len(streams[2]) >= mask.sum()
            again, kept = unpack_conv(streams, weight.shape, cut, x, y, window)
            np.testing.assert_array_equal(kept, mask)
            np.testing.assert_array_equal(again, np.where(mask, weight, 0))


def parts(mask: Array, groups: int, chunk: int) -> list[Array]:
    """Output channels of each chunk of each group: blocks begin anew there."""
    return [group[at : at + chunk] for group in np.split(mask, groups) for at in range(0, len(group), chunk)]


def test_single_weights_take_six_bytes() -> None:
    x = Planes(64, 14, 14, 1)
    weight, mask = weight_of((64, 64, 3, 3), 0.1)
    counts, offsets, values = pack_conv(weight, mask, Cut("blocks", 1, False, 16, 7, 16, 64), x, x, Window(3, 3, 1, 1))
    assert len(offsets) == len(values) == mask.sum()
    assert len(counts) == 2 * 64 * 4


def test_output_channels_stand_by_rising_count() -> None:
    """A loop whose length seldom changes is foreseen by the processor."""
    x = Planes(32, 14, 14, 1)
    weight, mask = weight_of((48, 32, 3, 3), 0.1)
    counts, *_ = pack_conv(weight, mask, Cut("blocks", 1, False, 16, 7, 16, 48), x, x, Window(3, 3, 1, 1))
    for block in counts.reshape(2, 48, 2):
        assert sorted(block[:, 0]) == list(range(48))
        assert (np.diff(block[:, 1].astype(int)) >= 0).all()


def test_channels_of_like_counts_go_in_step() -> None:
    """Few weights are left to go alone, and every weight takes six bytes."""
    x = Planes(128, 14, 14)
    weight, mask = weight_of((64, 128, 1, 1), 0.2)
    cut = Cut("even", 4, True, 16, 4, 64, 64)
    counts, offsets, values = pack_conv(weight, mask, cut, x, x, Window(1, 1))
    assert len(offsets) == len(values) == mask.sum()
    groups = counts.reshape(2, 16, 9).astype(int)
    for number, block in enumerate(groups):
        kept = mask[:, 64 * number : 64 * number + 64, 0, 0].sum(axis=1)
        assert sorted(block[:, 1::2].reshape(-1)) == list(range(64))
        np.testing.assert_array_equal(block[:, :1] + block[:, 2::2], kept[block[:, 1::2]])
        assert (np.diff(block[:, 0]) >= 0).all()
    assert 4 * groups[:, :, 0].sum() > 0.9 * mask.sum()


def test_removed_weights_of_a_kept_block_are_packed_as_zeros() -> None:
    x = Planes(2, 4, 4)
    weight, mask = np.ones((4, 2, 1, 1), np.float32), np.zeros((4, 2, 1, 1), bool)
    mask[1, 0] = True
    _, offsets, values = pack_conv(weight, mask, Cut("blocks", 4, True, 16, 1, 2, 4), x, x, Window(1, 1))
    assert len(offsets) == 1
    assert values.tolist() == [0, 1, 0, 0]


def test_a_block_beyond_the_reach_of_offsets_is_refused() -> None:
    x = Planes(64, 56, 56, 1)
    weight, mask = weight_of((4, 64, 3, 3), 0.5)
    with pytest.raises(ValueError, match="reach 20 channels"):
        pack_conv(weight, mask, Cut("blocks", 1, True, 16, 7, 64, 4), x, x, Window(3, 3, 1, 1))
    pack_conv(weight, mask, Cut("blocks", 1, True, 16, 7, 19, 4), x, x, Window(3, 3, 1, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"layout": "csr"},
        {"unit": 3},
        {"layout": "rows", "unit": 1},
        {"lanes": 4},
        {"tile": 0},
        {"tile": 65},
        {"block": 0},
        {"chunk": 0},
        {"unit": 4, "chunk": 6},
    ],
)
def test_cuts_that_no_kernel_runs_are_refused(wrong: dict[str, object]) -> None:
    right = {"layout": "blocks", "unit": 1, "direct": False, "lanes": 16, "tile": 4, "block": 4, "chunk": 8}
    Cut(**right)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"allowed|expected"):
        Cut(**{**right, **wrong})  # pyright: ignore[reportArgumentType]


def test_a_window_larger_than_the_value_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Window(5, 5).output(3, Planes(3, 4, 9))


@needs_core
def test_the_core_has_the_same_geometry() -> None:
    for channels, height, width, pad in itertools.product([1, 3], [1, 7, 56], [1, 7, 14, 15, 16, 28], [0, 1, 2, 3]):
        here, there = Planes(channels, height, width, pad), core.Planes(channels, height, width, pad)
        found = (there.row, there.first, there.stride, there.floats)
        assert found == (here.row, here.first, here.stride, here.floats)
        assert here.stride // 16 % 2 == 1
        assert here.first >= pad * here.row + pad
        assert here.stride >= here.first + height * here.row + pad * here.row + pad


@needs_core
@pytest.mark.parametrize(
    "wrong", [(0, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 0), (1, 1, 1, 257), (1 << 20, 1 << 20, 1 << 20, 0)]
)
def test_planes_that_cannot_be_are_refused(wrong: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="planes: "):
        core.Planes(*wrong)
