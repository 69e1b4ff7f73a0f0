"""Layers in bf16: kernels and packing, on every instruction set, against numbers that are rounded one by one."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from secateur.native.loading import core
from secateur.runtime import ACTIVATIONS, Packed, Pieces, formats, linear, pack
from secateur.runtime.pairs import PAIR_LAYOUTS, rounded
from tests.native.oracle import needs_core
from tests.runtime.bf16_oracle import TINY, all_nearest, nearest, own_sets, paired, product, some_mask
from tests.runtime.oracle import activated, handle_of, run

SAMPLES = (1, 15, 16, 17, 33, 65)
SHAPES = ((1, 1), (3, 17), (16, 64), (65, 129), (130, 33), (97, 191), (96, 192), (100, 193), (193, 385))


@needs_core
def test_the_instruction_set_is_asked_for_whole() -> None:
    asked = {line[1]: set(line[2].split()) for line in core.kernels()}
    if "avx512bf16" not in asked:
        pytest.skip("another architecture")
    assert asked["avx512bf16"] == asked["avx512vnni"] | {"avx512bf16"}
    assert "bf16_from_panel" in {line[0] for line in core.kernels() if line[1] == "avx512bf16"}


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.3, 3.4e38, 1e-39,
                                   -1e-39, TINY, TINY * (1 - 2**-23), math.inf, -math.inf, math.nan])  # fmt: skip
def test_rounding(value: float) -> None:
    found, wanted = float(rounded(torch.tensor([value]))[0]), nearest(float(torch.tensor(value)))
    assert np.array_equal(found, wanted, equal_nan=True)
    assert math.isnan(value) or math.copysign(1, found) == math.copysign(1, wanted)


@needs_core
@pytest.mark.parametrize("isa", own_sets())
@pytest.mark.parametrize("layout", PAIR_LAYOUTS)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_ragged_sizes(isa: str, layout: str, density: float) -> None:
    for rows, cols in SHAPES:
        torch.manual_seed(rows + cols)
        weight, bias, mask = torch.randn(rows, cols), torch.randn(rows), some_mask(rows, cols, density, layout)
        packed = pack(weight, mask, layout)
        handle, x = handle_of(packed, isa), torch.randn(max(SAMPLES), cols)
        wanted, bound = product(x, weight, mask, bias)
        for samples in SAMPLES:
            error = np.abs(run(handle, packed, x[:samples], bias) - wanted[:samples])
            assert (error <= bound[:samples]).all(), (rows, cols, samples)


@needs_core
@pytest.mark.parametrize("isa", own_sets())
@pytest.mark.parametrize("layout", PAIR_LAYOUTS)
def test_pairs_with_one_weight_in_many_chunks_and_k_blocks(isa: str, layout: str) -> None:
    rows, cols = 210, 601
    weight, bias = torch.randn(rows, cols), torch.randn(rows)
    mask = some_mask(rows, cols, 0.2, layout, pairs=False)
    bits = PAIR_LAYOUTS[layout].cut(rows, cols, 0.3).bits
    packed = pack(weight, mask, layout, Pieces(chunk=96, block=96, bits=bits))
    handle, x = handle_of(packed, isa), torch.randn(64, cols)
    wanted, bound = product(x, weight, mask, bias)
    for samples in (1, 20, 64):
        error = np.abs(run(handle, packed, x[:samples], bias, "relu") - activated(wanted[:samples], "relu"))
        assert (error <= bound[:samples]).all(), samples


@needs_core
@pytest.mark.parametrize("isa", own_sets())
@pytest.mark.parametrize("layout", PAIR_LAYOUTS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.4e38])
def test_removed_pairs_ignore_what_kept_ones_pass_on(isa: str, layout: str, value: float) -> None:
    """A half pair multiplies the 0 in it: NaN and infinity come through there, as documented."""
    rows, cols = 33, 71
    weight = torch.rand(rows, cols) + 0.5
    for pairs in (True, False):
        mask = some_mask(rows, cols, 0.2, layout, pairs)
        mask[:, 40:42] = False  # a pair that nobody reads
        packed = pack(weight, mask, layout)
        handle = handle_of(packed, isa)
        for samples in (1, 17):
            for column in (0, 1, 40, 41, 70):
                x = torch.rand(samples, cols)
                x[samples // 2, column] = value
                found, (wanted, _) = run(handle, packed, x, None), product(x, weight, mask)
                assert np.allclose(found, wanted, rtol=1e-5, equal_nan=True), (samples, column)
                assert np.isfinite(wanted).all() == (not bool(paired(mask)[:, column].any()))


@needs_core
@pytest.mark.parametrize("isa", own_sets())
@pytest.mark.parametrize("layout", PAIR_LAYOUTS)
def test_denormals_are_flushed(isa: str, layout: str) -> None:
    """Of weights and of inputs, however large the other factor is; the smallest normal number is not."""
    for tiny, wanted in ((1e-39, 0.0), (TINY * (1 - 2**-23), 0.0), (TINY, TINY * 2.0**100)):
        for weight, x in ((tiny, 2.0**100), (2.0**100, tiny)):
            packed = pack(torch.full((16, 4), weight), layout=layout)
            for samples in (1, 5):
                x4 = torch.tensor([x, 0.0, 0.0, 0.0]).expand(samples, 4).contiguous()
                assert (run(handle_of(packed, isa), packed, x4, None) == wanted).all()


@needs_core
@pytest.mark.parametrize("isa", own_sets())
@pytest.mark.parametrize("layout", PAIR_LAYOUTS)
def test_every_input_is_rounded_to_the_nearest(isa: str, layout: str) -> None:
    """Through the identity, so that nothing hides in a sum."""
    cols = 64
    bits = torch.randint(-(2**31), 2**31, (40, cols), dtype=torch.int64, generator=torch.Generator().manual_seed(0))
    x = bits.int().view(torch.float32)
    x[::3] = (bits[::3].int() & -65536 | 0x8000).view(torch.float32)  # ties
    x = torch.where(torch.isfinite(x), x, torch.tensor(1.5))
    mask = torch.ones(cols, cols, dtype=torch.bool) if layout == "block16-bf16" else torch.eye(cols, dtype=torch.bool)
    packed = pack(torch.eye(cols), mask, layout)
    wanted = all_nearest(x)
    sane = np.isfinite(wanted).all(axis=1)  # 0 times infinity spoils the others
    assert sane.sum() > 30
    for samples in (1, 40):
        found = run(handle_of(packed, isa), packed, x[:samples], None)
        assert np.array_equal(found[sane[:samples]], wanted[:samples][sane[:samples]])


@needs_core
@pytest.mark.parametrize("layout", PAIR_LAYOUTS)
def test_nothing_is_left_from_the_call_before(layout: str) -> None:
    weight, mask = torch.randn(37, 45), some_mask(37, 45, 0.3, layout)
    packed, dirty = pack(weight, mask, layout), pack(torch.ones(64, 200), layout=layout)
    for samples in (1, 3, 17, 64):
        run(dirty.native, dirty, torch.full((samples, 200), math.nan), None)
        x = torch.randn(samples, 45)
        wanted, bound = product(x, weight, mask)
        assert (np.abs(run(packed.native, packed, x, None) - wanted) <= bound).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", PAIR_LAYOUTS)
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
    finite = np.isfinite(wanted)
    assert not finite.all()
    error = np.abs(found[finite] - activated(wanted, activation)[finite])
    assert (error <= 2 * bound[finite] + 5e-7).all()
    if activation is None:
        assert np.array_equal(found[~finite], wanted[~finite], equal_nan=True)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0), (1, 1), (70, 97), (200, 200)])
@pytest.mark.parametrize("layout", PAIR_LAYOUTS)
def test_round_trip(layout: str, size: tuple[int, int]) -> None:
    weight, mask = torch.randn(size), some_mask(*size, 0.3, layout)
    packed = pack(weight, mask, layout)
    assert packed.nnz == int(mask.sum())
    for again in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        dense, kept = again.dense()
        assert torch.equal(kept, mask)
        assert np.array_equal(dense.numpy(), all_nearest(torch.where(mask, weight, 0.0)).reshape(size))
    y = linear(torch.ones(3, size[1]), packed, torch.full((size[0],), -2.0))
    assert y.shape == (3, size[0])


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("layout", PAIR_LAYOUTS)
@pytest.mark.parametrize("name", ["counts", "index", "values"])
@pytest.mark.parametrize("damage", ["short", "long", "kind"])
def test_damaged_streams(layout: str, name: str, damage: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(formats, "core", None)
    packed = pack(torch.randn(40, 50), some_mask(40, 50, 0.5, layout), layout)
    streams = packed.tensors()
    assert streams["values"].dtype == torch.bfloat16
    stream = streams[name]
    streams[name] = {"short": stream[:-1], "long": torch.cat([stream, stream[-1:]]), "kind": stream.double()}[damage]
    with pytest.raises(ValueError, match=r"packed weights|expected torch"):
        Packed(layout, packed.shape, packed.pieces, streams)
