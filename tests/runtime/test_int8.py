"""Layers in int8: kernels and packing, on every instruction set, against whole numbers."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.native.loading import core
from secateur.runtime import ACTIVATIONS, Packed, Pieces, formats, linear, pack
from secateur.runtime.quads import LONGEST, QUAD_LAYOUTS, on_grid
from tests.native.oracle import instruction_sets, needs_core
from tests.runtime.int8_oracle import own_sets, product, sample_on_grid, some_mask, weights_on_grid
from tests.runtime.oracle import activated, handle_of, run

SAMPLES = (1, 15, 16, 17, 63, 65)
SHAPES = ((1, 1), (3, 17), (16, 64), (65, 129), (130, 33), (97, 191), (96, 384), (100, 385), (63, 775))


@needs_core
def test_the_instruction_sets_are_asked_for_whole() -> None:
    asked = {line[1]: set(line[2].split()) for line in core.kernels()}
    if "avx512vnni" not in asked:
        pytest.skip("another architecture")
    assert asked["avx512vnni"] == asked["avx512"] | {"avx512vnni"}
    assert asked["avx512bf16"] > asked["avx512vnni"], "processors with bf16 must not lose the kernels of vnni"
    assert "int8_from_panel" in {line[0] for line in core.kernels() if line[1] == "avx512vnni"}


@needs_core
@pytest.mark.parametrize("isa", own_sets())
@pytest.mark.parametrize("layout", QUAD_LAYOUTS)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_ragged_sizes(isa: str, layout: str, density: float) -> None:
    for rows, cols in SHAPES:
        torch.manual_seed(rows + cols)
        weight, bias, mask = torch.randn(rows, cols), torch.randn(rows), some_mask(rows, cols, density, layout)
        weight[rows // 2] = 0.0  # a row of zeros that are kept
        packed = pack(weight, mask, layout)
        handle, x = handle_of(packed, isa), 3 * torch.randn(max(SAMPLES), cols)
        wanted, bound = product(x, weight, mask, bias)
        for samples in SAMPLES if rows < 100 else (1, 17, 65):
            error = np.abs(run(handle, packed, x[:samples], bias) - wanted[:samples])
            assert (error <= bound[:samples]).all(), (rows, cols, samples)


@needs_core
@pytest.mark.parametrize("isa", own_sets())
@pytest.mark.parametrize("layout", QUAD_LAYOUTS)
def test_quads_with_few_weights_in_many_chunks_and_k_blocks(isa: str, layout: str) -> None:
    rows, cols = 210, 1201
    weight, bias = torch.randn(rows, cols), torch.randn(rows)
    mask = some_mask(rows, cols, 0.1, layout, quads=False)
    packed = pack(weight, mask, layout, Pieces(chunk=96, block=96, bits=QUAD_LAYOUTS[layout].cut(rows, cols, 0.3).bits))
    assert packed.nnz == int(mask.sum()) < int(packed.dense()[1].sum()) or layout == "block16-int8"
    handle, x = handle_of(packed, isa), torch.randn(64, cols)
    wanted, bound = product(x, weight, mask, bias)
    for samples in (1, 20, 64):
        error = np.abs(run(handle, packed, x[:samples], bias, "relu") - activated(wanted[:samples], "relu"))
        assert (error <= bound[:samples]).all(), samples


@needs_core
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("layout", QUAD_LAYOUTS)
@pytest.mark.parametrize("cols", [5, 64, 800])
def test_sums_are_exact(isa: str, layout: str, cols: int) -> None:
    """Grids of step 1: the outputs are the sums, to the last bit, whatever the zero is."""
    generator = torch.Generator().manual_seed(cols)
    weight = torch.randint(-127, 128, (48, cols), generator=generator).float()
    weight[:, 0] = torch.where(torch.arange(48) % 2 == 0, 127.0, -127.0)
    mask = some_mask(48, cols, 0.4, layout)
    mask[:, 0] = True
    packed = pack(weight, mask, layout)
    assert torch.equal(packed.dense()[0], torch.where(mask, weight, 0.0))
    for zero in (0, 1, 100, 255):
        x = torch.randint(0, 256, (33, cols), generator=generator).float() - zero
        x[:, 1], x[:, 2] = -zero, 255 - zero
        wanted = (x.double() @ torch.where(mask, weight, 0.0).double().t()).numpy()
        for samples in (1, 33):
            assert np.array_equal(run(handle_of(packed, isa), packed, x[:samples], None), wanted[:samples])


@needs_core
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("layout", QUAD_LAYOUTS)
def test_the_largest_sum(isa: str, layout: str) -> None:
    """127 times 255 at every place: nothing saturates, and the longest row still fits 32 bits."""
    for cols in (4, LONGEST):
        weight = torch.full((16, cols), 127.0)
        weight[1::2] = -127.0
        packed = pack(weight, layout=layout)
        x = torch.full((2, cols), 255.0)
        x[1] = -255.0
        sums = np.outer([1, -1], np.resize([1, -1], 16)) * cols * 127 * 255
        assert np.abs(sums).max() < 2**31
        found = np.stack([run(handle_of(packed, isa), packed, one[None], None)[0] for one in x])
        assert np.array_equal(found, sums.astype(np.float32))
        assert np.array_equal(run(handle_of(packed, isa), packed, x, None), sums.astype(np.float32))


def test_longer_rows_are_refused() -> None:
    weight = torch.ones(1, LONGEST + 1)
    for layout in QUAD_LAYOUTS:
        with pytest.raises(ValueError, match="int8 sums at most 66,311 inputs"):
            pack(weight, layout=layout)
    streams = {"counts": torch.zeros(1, dtype=torch.int16), "index": torch.zeros(0, dtype=torch.int16)}
    streams |= {"values": torch.zeros(0, dtype=torch.int8), "scales": torch.ones(1), "sums": torch.zeros(1).int()}
    pieces = Pieces(96, 174 * 96, 16)
    assert Packed("quads-csr-int8", (1, LONGEST), pieces, streams).nnz == 0
    with pytest.raises(ValueError, match="int8 sums at most"):
        Packed("quads-csr-int8", (1, LONGEST + 1), pieces, streams)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weight = torch.ones(4, 8)
    weight[1, 3] = value
    with pytest.raises(ValueError, match="no NaN and no infinity"):
        pack(weight, layout="quads-int8")
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[1, 3] = False
    assert pack(weight, mask, "quads-int8").dense()[0][1].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]


def odd_samples(cols: int) -> Tensor:
    """Samples whose grids are extreme: constant, of one sign, of one number, tiny, huge, minus zeros."""
    ramp = torch.linspace(0.1, 1.0, cols)
    one = torch.zeros(cols)
    one[cols // 2] = -7.5
    extremes = torch.where(torch.arange(cols) % 2 == 0, 3.4e38, -3.4e38)
    zeros = torch.zeros(cols)
    all_odd = [zeros, -zeros, zeros + 5, zeros - 5, ramp, -ramp, one, -one, extremes, zeros + 3.4e38, ramp * 1e-38]
    return torch.stack([*all_odd, ramp * 1e-40, -ramp * 1e-44, ramp * 1e30 - 2e29])


@needs_core
@pytest.mark.parametrize("isa", own_sets())
@pytest.mark.parametrize("layout", QUAD_LAYOUTS)
@pytest.mark.parametrize("size", [1.0, 1e-20, 1e-43])
def test_odd_samples_and_weights(isa: str, layout: str, size: float) -> None:
    cols = 97
    weight, mask = torch.randn(33, cols) * size / 500, some_mask(33, cols, 0.4, layout)
    packed = pack(weight, mask, layout)
    x = odd_samples(cols)
    wanted, bound = product(x, weight, mask)
    handle = handle_of(packed, isa)
    one_by_one = np.concatenate([run(handle, packed, sample[None], None) for sample in x])
    for found in (run(handle, packed, x, None), one_by_one):
        assert (np.abs(found - wanted) <= bound).all()
        assert (found[:2] == 0).all()


@needs_core
@pytest.mark.parametrize("isa", own_sets())
@pytest.mark.parametrize("layout", QUAD_LAYOUTS)
def test_ties_go_to_even_numbers(isa: str, layout: str) -> None:
    """Through the identity: the outputs are the grid's numbers, less their zero."""
    cols = 64
    mask = torch.ones(cols, cols, dtype=torch.bool) if layout == "block16-int8" else torch.eye(cols, dtype=torch.bool)
    packed = pack(torch.eye(cols) * 127, mask, layout)
    x = torch.arange(40 * cols).reshape(40, cols) * 0.5 % 255
    x[:, 0], x[:, 1] = 0.0, 255.0
    x[20:] -= 101
    wanted = 127 * (np.rint(x.double().numpy()))
    assert len(set(wanted.reshape(-1))) > 200
    for samples in (1, 40):
        assert np.array_equal(run(handle_of(packed, isa), packed, x[:samples], None), wanted[:samples])


@needs_core
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("layout", QUAD_LAYOUTS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_not_finite_comes_out_as_nan(isa: str, layout: str, value: float) -> None:
    """All of its outputs, wherever the value stands, empty rows too; the others are untouched."""
    rows, cols = 33, 71
    weight, mask = torch.rand(rows, cols) + 0.5, some_mask(rows, cols, 0.2, layout)
    mask[:, 40:44] = False  # a quad that nobody reads
    if layout != "block16-int8":
        mask[5] = False
    packed = pack(weight, mask, layout)
    handle = handle_of(packed, isa)
    for samples in (1, 17):
        for column in (0, 3, 41, 68, 70):
            x = torch.rand(samples, cols)
            clean = run(handle, packed, x, torch.ones(rows), "relu")
            x[samples // 2, column] = value
            found = run(handle, packed, x, torch.ones(rows), "relu")
            assert np.isnan(found[samples // 2]).all()
            others = np.arange(samples) != samples // 2
            assert np.array_equal(found[others], clean[others])


@needs_core
@pytest.mark.parametrize("layout", QUAD_LAYOUTS)
def test_samples_are_independent_of_each_other(layout: str) -> None:
    weight, mask = torch.randn(50, 130), some_mask(50, 130, 0.3, layout)
    packed, x = pack(weight, mask, layout), torch.randn(20, 130)
    alone = run(packed.native, packed, x, None)[3]
    x[[0, 1, 2, *range(4, 20)]] *= 1000
    assert np.array_equal(run(packed.native, packed, x, None)[3], alone)


@needs_core
@pytest.mark.parametrize("layout", QUAD_LAYOUTS)
def test_nothing_is_left_from_the_call_before(layout: str) -> None:
    weight, mask = torch.randn(37, 45), some_mask(37, 45, 0.3, layout)
    packed, dirty = pack(weight, mask, layout), pack(torch.ones(64, 200), layout="even")
    for samples in (1, 3, 17, 64):
        run(dirty.native, dirty, torch.full((samples, 200), math.nan), None)
        x = torch.randn(samples, 45)
        wanted, bound = product(x, weight, mask)
        assert (np.abs(run(packed.native, packed, x, None) - wanted) <= bound).all()


@pytest.mark.parametrize("scale", [1.0, 1e-42, 1e37])
def test_grids_are_close_and_the_same_everywhere(scale: float) -> None:
    x = torch.randn(30, 57) * scale
    numbers, steps, zeros = on_grid(x)
    for i, sample in enumerate(x.numpy()):
        wanted, step, zero = sample_on_grid(sample)
        assert np.array_equal(numbers[i].numpy(), wanted)
        assert (float(steps[i]), int(zeros[i])) == (step, zero)
    back = steps[:, None].double() * (numbers - zeros[:, None]).double()
    assert bool(((back - x.double()).abs() <= 1.001 * steps[:, None]).all())  # half a step, and half of the zero's own


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", QUAD_LAYOUTS)
def test_the_reference_agrees(layout: str, activation: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "core", None)
    torch.manual_seed(0)
    weight, bias, mask = torch.randn(50, 71), torch.randn(50), some_mask(50, 71, 0.2, layout)
    packed = pack(weight, mask, layout)
    assert packed.native is None
    x = torch.randn(9, 71)
    x[3, 5] = math.inf
    wanted, bound = product(x, weight, mask, bias)
    found = linear(x, packed, bias, activation).double().numpy()
    assert np.isnan(found[3]).all()
    rest = np.arange(9) != 3
    assert (np.abs(found - activated(wanted, activation))[rest] <= 2 * bound[rest] + 5e-7).all()


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0), (1, 1), (70, 97), (200, 200)])
@pytest.mark.parametrize("layout", QUAD_LAYOUTS)
def test_round_trip(layout: str, size: tuple[int, int]) -> None:
    weight, mask = torch.randn(size), some_mask(*size, 0.3, layout)
    packed = pack(weight, mask, layout)
    assert packed.nnz == int(mask.sum())
    q, scales = weights_on_grid(weight, mask)
    for again in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        numbers, kept = again.integers()
        assert torch.equal(kept, mask)
        assert np.array_equal(numbers.numpy(), q.reshape(size))
        assert np.array_equal(again.scales.numpy(), scales)
        assert np.array_equal(again.dense()[0].numpy(), (q.reshape(size) * scales[:, None]).astype(np.float32))
    y = linear(torch.ones(3, size[1]), packed, torch.full((size[0],), -2.0))
    assert y.shape == (3, size[0])
    assert size[1] or bool((y == -2).all())


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("layout", QUAD_LAYOUTS)
@pytest.mark.parametrize("name", ["counts", "index", "values", "scales", "sums"])
@pytest.mark.parametrize("damage", ["short", "long", "kind", "missing"])
def test_damaged_streams(layout: str, name: str, damage: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(formats, "core", None)
    packed = pack(torch.randn(40, 50), some_mask(40, 50, 0.5, layout), layout)
    streams = packed.tensors()
    Packed(layout, packed.shape, packed.pieces, streams)
    stream = streams.pop(name)
    damaged = {"short": stream[:-1], "long": torch.cat([stream, stream[-1:]]), "kind": stream.double()}
    streams |= {} if damage == "missing" else {name: damaged[damage]}
    with pytest.raises(ValueError, match=r"packed weights|expected torch|is missing"):
        Packed(layout, packed.shape, packed.pieces, streams)
