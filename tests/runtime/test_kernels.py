"""The sparse kernels: every layout on every instruction set that this machine has, against products one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from secateur.runtime import ACTIVATIONS, LAYOUTS, Pieces, pack
from tests.native.oracle import instruction_sets, needs_core
from tests.runtime.oracle import FREE, activated, bound, handle_of, product, random_mask, run

pytestmark = needs_core

SAMPLES = (1, 15, 16, 17, 33, 65)
SHAPES = ((1, 1), (3, 17), (15, 63), (16, 64), (65, 129), (130, 33), (96, 97), (97, 96), (193, 192))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("layout", FREE)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_ragged_sizes(isa: str, layout: str, density: float) -> None:
    for rows, cols in SHAPES:
        torch.manual_seed(rows + cols)
        weight, bias, mask = torch.randn(rows, cols), torch.randn(rows), random_mask(rows, cols, density, layout)
        packed = pack(weight, mask, layout)
        handle = handle_of(packed, isa)
        for samples in SAMPLES:
            x = torch.randn(samples, cols)
            error = np.abs(run(handle, packed, x, bias) - product(x, weight, mask, bias))
            assert (error <= bound(x, weight, mask, bias)).all(), (rows, cols, samples)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("layout", FREE)
def test_many_chunks_and_k_blocks(isa: str, layout: str) -> None:
    rows, cols = 210, 300
    weight, bias, mask = torch.randn(rows, cols), torch.randn(rows), random_mask(rows, cols, 0.3, layout)
    bits = LAYOUTS[layout].cut(rows, cols, 0.3).bits
    packed = pack(weight, mask, layout, Pieces(chunk=96, block=96, bits=bits))
    handle = handle_of(packed, isa)
    for samples in (1, 20, 64):
        x = torch.randn(samples, cols)
        error = np.abs(run(handle, packed, x, bias, "relu") - activated(product(x, weight, mask, bias), "relu"))
        assert (error <= bound(x, weight, mask, bias)).all(), samples


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("layout", FREE)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_removed_weights_ignore_what_kept_ones_pass_on(isa: str, layout: str, value: float) -> None:
    rows, cols = 33, 70
    weight, mask = torch.rand(rows, cols) + 0.5, random_mask(rows, cols, 0.2, layout)
    mask[:, 40] = False  # a column that nobody reads
    packed = pack(weight, mask, layout, None)
    handle = handle_of(packed, isa)
    for samples in (1, 17):
        for column in (0, 1, 40, 69):
            x = torch.rand(samples, cols)
            x[samples // 2, column] = value
            found, wanted = run(handle, packed, x, None), product(x, weight, mask)
            assert np.allclose(found, wanted, rtol=1e-5, equal_nan=True), (samples, column)
            assert np.isfinite(wanted).all() == (not bool(mask[:, column].any()))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("layout", FREE)
def test_infinite_weights_stay_with_their_samples(isa: str, layout: str) -> None:
    """Infinity times the zeros that fill up a panel is NaN: it must not reach a sample that is there."""
    rows, cols = 20, 50
    weight, mask = torch.randn(rows, cols), random_mask(rows, cols, 0.4, layout)
    weight[5, 7], weight[16, 3] = math.inf, math.nan
    mask[4:8, 7] = mask[16:, 3] = True
    if layout == "block8":
        mask[:8, 7] = True
    if layout == "block16":
        mask[:16, 7] = True
    packed = pack(weight, mask, layout)
    x = torch.rand(3, cols) + 0.5
    found, wanted = run(handle_of(packed, isa), packed, x, None), product(x, weight, mask)
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert np.isinf(wanted).any()
    assert np.isnan(wanted).any()


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("layout", FREE)
def test_nothing_is_left_from_the_call_before(isa: str, layout: str) -> None:
    """Panels are used again: what an earlier call left there must not meet the zeros that fill up layouts."""
    weight, mask = torch.randn(37, 45), random_mask(37, 45, 0.3, layout)
    packed = pack(weight, mask, layout)
    handle = handle_of(packed, isa)
    dirty = pack(torch.ones(64, 200), layout=layout)
    for samples in (1, 3, 17, 64):
        run(handle_of(dirty, isa), dirty, torch.full((samples, 200), math.nan), None)
        x = torch.randn(samples, 45)
        error = np.abs(run(handle, packed, x, None) - product(x, weight, mask))
        assert (error <= bound(x, weight, mask)).all()


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("layout", FREE)
def test_denormals_are_not_flushed(isa: str, layout: str) -> None:
    weight = torch.zeros(16, 9)
    weight[:, 4] = 1e-42
    packed = pack(weight, layout=layout)
    for samples in (1, 5):
        found = run(handle_of(packed, isa), packed, torch.full((samples, 9), 0.5), None)
        assert (found == float(torch.tensor(1e-42) * 0.5)).all()


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("layout", ["rows", "csr", "ell", "block4"])
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name])
def test_activations_as_torch_has_them(isa: str, layout: str, activation: str) -> None:
    """Each output is one input times 1: the activation alone, over every range, in panels and for single samples."""
    values = torch.cat(
        [torch.linspace(-12, 12, 2000), torch.tensor([0.0, 1e-30, -1e-30, 80, -80, 1e4, -1e4, 1e20, -1e20])]
    )
    special = torch.tensor([math.nan, math.inf, -math.inf])
    weight = torch.ones(16, 1)
    packed = pack(weight, layout=layout)
    handle = handle_of(packed, isa)
    for x in (torch.cat([values, special])[:, None], *special[:, None, None]):
        found, wanted = run(handle, packed, x, None, activation), activated(x.double().numpy(), activation)
        assert np.allclose(found, wanted, rtol=2e-6, atol=6e-7, equal_nan=True)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("layout", FREE)
def test_misaligned_memory(isa: str, layout: str) -> None:
    weight, mask = torch.randn(40, 50), random_mask(40, 50, 0.3, layout)
    packed = pack(weight, mask, layout)
    memory, bias = torch.randn(65 * 50 + 3), torch.randn(43)[3:]
    for samples in (1, 65):
        for offset in (1, 3):
            x = memory[offset : offset + samples * 50].view(samples, 50)
            error = np.abs(run(handle_of(packed, isa), packed, x, bias) - product(x, weight, mask, bias))
            assert (error <= bound(x, weight, mask, bias)).all()
