"""Convolutions of 1 x 1 that copy the pixels of 16 images, against loops in float64; sums laid over the residual."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from secateur.runtime import ACTIVATIONS
from secateur.runtime.conv_candidates import image_candidates
from secateur.runtime.conv_cuts import Cut, Planes, Window
from secateur.runtime.conv_streams import pack_conv, unpack_conv
from tests.native.oracle import instruction_sets, needs_core
from tests.runtime.test_conv_kernels import Layer, conv_step, layer, whole_blocks
from tests.runtime.test_images16_kernels import KERNELS, check, images_of, run, side_by_side

pytestmark = needs_core


def cut_of(layout: str = "blocks", unit: int = 1, tile: int = 4, block: int = 3, chunk: int = 8) -> Cut:
    return Cut(layout, unit, False, 16, tile, block, chunk)


def fitting(work: Layer, layout: str, unit: int) -> Layer:
    return replace(work, mask=whole_blocks(work.mask, unit) if layout == "blocks" else work.mask)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(("layout", "unit"), KERNELS)
def test_ragged_sizes(isa: str, layout: str, unit: int) -> None:
    """Pixels that tiles do not divide, channels that blocks and chunks do not, all activations, few images."""
    counts, activations = itertools.cycle([16, 3, 1, 20]), itertools.cycle(ACTIVATIONS)
    tiles, blocks = itertools.cycle([3, 7, 1, 14, 64]), itertools.cycle([2, 5, 30])
    for i, size in enumerate([(7, 7), (1, 1), (5, 9), (14, 3), (1, 15), (8, 8)]):
        pads = ((0, 0), (1, 0), (0, 2), (1, 1))[i % 4]
        work = layer((3 + 2 * i, 15 - 2 * i), size, Window(1, 1), 0.4, pads, i % 2 == 0, next(activations))
        cut = cut_of(layout, unit, next(tiles), next(blocks), unit * (1 + i))
        check(isa, fitting(work, layout, unit), cut, next(counts))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1])
def test_steps_padding_and_groups(isa: str, step: int, padding: int) -> None:
    tiles = itertools.cycle([1, 3, 5, 14])
    for groups, (layout, unit) in itertools.product((1, 2), KERNELS):
        window = Window(1, 1, step, padding, 1, groups)
        work = layer((8, 10), (9, 14), window, 0.5, (1, 1), True, "relu")
        check(isa, fitting(work, layout, unit), cut_of(layout, unit, next(tiles)), 5)


@pytest.mark.parametrize("isa", instruction_sets())
def test_the_result_may_lie_over_the_residual(isa: str) -> None:
    for kernel, step, (layout, unit) in itertools.product((1, 3), (1, 2), KERNELS):
        work = layer((6, 9), (9, 14), Window(kernel, kernel, step, kernel // 2), 0.5, (1, 1), True, "gelu")
        cut = replace(cut_of(layout, unit, 5), direct=kernel > 1)
        check(isa, fitting(work, layout, unit), cut, 16, over=True)


def test_images_one_after_another_do_not_lie_over_their_residual() -> None:
    work = layer((6, 9), (9, 14), Window(3, 3, 1, 1), residual=True)
    with pytest.raises(ValueError, match="residual"):
        conv_step("portable", work, replace(cut_of(), tile=2), (0, 4096 * 16, 4096 * 16))


@pytest.mark.parametrize("isa", instruction_sets())
def test_results_may_go_past_the_caches(isa: str) -> None:
    for kernel, step, (layout, unit) in itertools.product((1, 3), (1, 2), KERNELS):
        work = layer((6, 9), (9, 14), Window(kernel, kernel, step, kernel // 2), 0.5, (1, 1), False, "relu")
        cut = replace(cut_of(layout, unit, 5), direct=kernel > 1)
        check(isa, fitting(work, layout, unit), cut, 16, past=True, threads=2 if step == 1 else 1)


def test_only_whole_cache_lines_without_a_residual_go_past_the_caches() -> None:
    work = layer((6, 9), (9, 14), Window(1, 1))
    many = side_by_side(work)
    for wrong, cut, at in (
        (work, replace(cut_of(), direct=False), 4096),
        (many, cut_of(), 4104),
        (replace(many, residual=np.zeros((9, 9, 14), np.float32)), cut_of(), 4096),
    ):
        with pytest.raises(ValueError, match="past the caches"):
            conv_step("portable", wrong, cut, (0, at, 0), past=True)


def test_threads_share_the_tiles() -> None:
    """More tiles than pieces, as many, fewer."""
    for size, tile in itertools.product([(7, 7), (12, 14), (2, 1)], (1, 3, 5)):
        work = layer((9, 20), size, Window(1, 1), 0.5, (1, 1), True, "relu")
        check("portable", work, cut_of(tile=tile, chunk=20), 16, over=True, threads=2)


@pytest.mark.parametrize("isa", instruction_sets())
def test_nan_and_infinity_stay_with_their_image_and_with_kept_weights(isa: str) -> None:
    work = side_by_side(layer((5, 6), (3, 5), Window(1, 1), 0.5))
    work.mask[:3, 1], work.mask[3:, 1] = False, True
    for layout, unit in (("blocks", 1), ("rows", 2), ("rows", 4)):
        images = images_of(work, 16)
        for i, value in ((2, np.nan), (7, np.inf)):
            images[i].pixels[1, 1, 4] = value
        found, _ = run(isa, images, cut_of(layout, unit))
        assert np.isfinite(found[:, :3]).all()
        assert [i for i in range(16) if not np.isfinite(found[i]).all()] == [2, 7]


@pytest.mark.parametrize("density", [0.02, 0.1, 0.4, 1.0])
def test_what_is_tried_gives_the_same(density: float) -> None:
    """Cuts as the packer makes them; few output channels are not copied for."""
    for channels, step in itertools.product([(20, 16), (200, 24), (700, 17), (20, 15)], (1, 2)):
        work = side_by_side(layer(channels, (5, 7), Window(1, 1, step), density, (0, 0), True, "relu"))
        cuts = image_candidates(work.x, work.y, work.window, density)
        assert all(cut.direct == (channels[1] < 16) for cut in cuts)
        for isa, cut in itertools.product(instruction_sets(), cuts):
            check(isa, fitting(work, cut.layout, cut.unit), cut, 2)


def test_streams_come_back() -> None:
    for step, (layout, unit) in itertools.product((1, 2), KERNELS):
        work = fitting(side_by_side(layer((10, 12), (9, 15), Window(1, 1, step), 0.3)), layout, unit)
        cut, geometry = cut_of(layout, unit), (work.x, work.y, work.window)
        weight, found = unpack_conv(pack_conv(work.weight, work.mask, cut, *geometry), (12, 10, 1, 1), cut, *geometry)
        np.testing.assert_array_equal(weight, np.where(work.mask, work.weight, 0))
        np.testing.assert_array_equal(found, work.mask)


def test_offsets_outside_the_copy_are_refused() -> None:
    work = side_by_side(layer((5, 6), (9, 15), Window(1, 1)))
    cut = cut_of()
    counts, offsets, values = pack_conv(work.weight, work.mask, cut, work.x, work.y, work.window)
    conv_step("portable", work, cut, (0, 0, 0), (counts, offsets, values))
    offsets[0] = cut.block * cut.tile
    with pytest.raises(ValueError, match="offset"):
        conv_step("portable", work, cut, (0, 0, 0), (counts, offsets, values))
    with pytest.raises(ValueError, match="too large"):
        conv_step("portable", replace(work, x=Planes(1 << 20, 1, 1, 0, 16), y=Planes(6, 1, 1, 0, 16)),
                  replace(cut, tile=64, block=1 << 20), (0, 0, 0), (counts, offsets, values))  # fmt: skip
