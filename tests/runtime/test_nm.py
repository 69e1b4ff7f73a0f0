"""n:m patterns along the inputs, one sample: the kernel on every instruction set, packing, recognition, refusals."""

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
from secateur.runtime.candidates import candidates, pattern_of
from secateur.runtime.graph import Graph, Node
from secateur.runtime.program import Program
from tests.native.oracle import instruction_sets, needs_core
from tests.runtime.oracle import activated, bound, handle_of, product, run

PATTERNS = ((1, 4), (2, 4), (1, 8), (2, 8), (4, 8), (1, 16), (2, 16), (4, 16), (8, 16))
SHAPES = ((1, 16), (3, 17), (15, 63), (16, 64), (17, 80), (65, 129), (96, 96), (97, 97), (130, 112), (193, 201))


def nm_mask(rows: int, cols: int, n: int, m: int) -> Tensor:
    """n of every m inputs; of the columns that are left over fewer."""
    scores = torch.rand(rows, -(-cols // m), m).argsort(2)
    return (scores < n).flatten(1)[:, :cols].contiguous()


@needs_core
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_against_float64(isa: str, n: int, m: int) -> None:
    for rows, cols in SHAPES:
        torch.manual_seed(rows + cols)
        weight, bias, mask = torch.randn(rows, cols), torch.randn(rows), nm_mask(rows, cols, n, m)
        packed = pack(weight, mask, "nm")
        for samples, activation in ((1, None), (3, "relu")):
            x = torch.randn(samples, cols)
            found = run(handle_of(packed, isa), packed, x, bias, activation)
            error = np.abs(found - activated(product(x, weight, mask, bias), activation))
            assert (error <= bound(x, weight, mask, bias)).all(), (rows, cols, samples)


@needs_core
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("cols", [288, 300])
def test_many_chunks_and_k_blocks(isa: str, cols: int) -> None:
    weight, bias, mask = torch.randn(210, cols), torch.randn(210), nm_mask(210, cols, 2, 4)
    packed = pack(weight, mask, "nm", Pieces(chunk=96, block=96, bits=16))
    x = torch.randn(2, cols)
    error = np.abs(run(handle_of(packed, isa), packed, x, bias) - product(x, weight, mask, bias))
    assert (error <= bound(x, weight, mask, bias)).all()
    assert torch.equal(packed.dense()[1], mask)


@needs_core
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_removed_weights_ignore_what_kept_ones_pass_on(isa: str, value: float) -> None:
    """Also in a last window of 6 inputs, where rows have fewer than the pattern says."""
    weight, mask = torch.rand(33, 70) + 0.5, nm_mask(33, 70, 2, 8)
    mask[::2, 64:] = False
    weight[5, :3] = 0.0  # a kept weight of 0 is one
    packed = pack(weight, mask, "nm")
    for column in (0, 1, 40, 63, 64, 69):
        x = torch.rand(1, 70)
        x[0, column] = value
        found, wanted = run(handle_of(packed, isa), packed, x, None), product(x, weight, mask)
        assert np.allclose(found, wanted, rtol=1e-5, equal_nan=True), column
        assert not np.isfinite(wanted).all()
        assert np.isfinite(wanted).any()


@needs_core
@pytest.mark.parametrize("isa", instruction_sets())
def test_misaligned_memory_and_what_was_there(isa: str) -> None:
    weight, mask = torch.randn(40, 50), nm_mask(40, 50, 4, 8)
    packed, dirty = pack(weight, mask, "nm"), pack(torch.ones(64, 208), nm_mask(64, 208, 1, 4), "nm")
    memory = torch.randn(53)
    for offset in (1, 3):
        run(handle_of(dirty, isa), dirty, torch.full((1, 208), math.nan), None)
        x = memory[offset : offset + 50].view(1, 50)
        error = np.abs(run(handle_of(packed, isa), packed, x, None) - product(x, weight, mask))
        assert (error <= bound(x, weight, mask)).all()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("activation", ["gelu", None])
def test_linear(native: bool, activation: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if native and core is None:
        pytest.skip("the C++ core is absent")
    if not native:
        monkeypatch.setattr(formats, "core", None)
    weight, bias, mask = torch.randn(50, 72), torch.randn(50), nm_mask(50, 72, 2, 4)
    packed = pack(weight, mask, "nm")
    for samples in (0, 1, 5, 40):
        x = torch.randn(samples, 72)
        error = np.abs(
            linear(x, packed, bias, activation).numpy() - activated(product(x, weight, mask, bias), activation)
        )
        assert (error <= 2 * bound(x, weight, mask, bias) + 5e-7).all()


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_round_trip(n: int, m: int) -> None:
    for rows, cols in SHAPES:
        mask = nm_mask(rows, cols, n, m)
        weight = torch.randn(rows, cols)
        weight[0, :] = -0.0
        packed = pack(weight, mask, "nm")
        for again in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            dense, kept = again.dense()
            assert torch.equal(kept, mask)
            assert torch.equal(dense.view(torch.int32), torch.where(mask, weight, 0.0).view(torch.int32))
            assert again.nnz == int(mask.sum())


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_bytes(n: int, m: int) -> None:
    """4.5 for a weight, against the 5 of values and one byte."""
    assert pack(torch.randn(768, 768), nm_mask(768, 768, n, m), "nm").overhead < 0.905


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", ["counts", "index", "values"])
@pytest.mark.parametrize("damage", ["short", "long", "high", "each", "windows"])
def test_damaged_streams_are_refused(name: str, damage: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if native and core is None:
        pytest.skip("the C++ core is absent")
    if not native:
        monkeypatch.setattr(formats, "core", None)
    packed = pack(torch.randn(40, 50), nm_mask(40, 50, 2, 4), "nm")
    streams = packed.tensors()
    if damage in ("each", "windows"):
        streams["counts"][0 if damage == "each" else 1] = 2
    elif damage == "short":
        streams[name] = streams[name][:-1]
    elif damage == "long":
        streams[name] = torch.cat([streams[name], streams[name][-1:]])
    elif name == "values":
        streams[name] = streams[name].double()
    else:
        streams[name].view(torch.uint8).fill_(0x7F)
    with pytest.raises(ValueError, match=r"packed weights|values: expected"):
        Packed("nm", packed.shape, packed.pieces, streams)


def cut(mask: Tensor) -> Tensor:
    mask = mask.clone()
    mask[3, int(mask[3, 16:32].nonzero()[0]) + 16] = False
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        cut(nm_mask(20, 64, 2, 4)),
        torch.rand(20, 64) < 0.5,
        torch.ones(20, 64, dtype=torch.bool),
        nm_mask(20, 15, 1, 4),
        nm_mask(20, 48, 3, 16),
        torch.cat([nm_mask(10, 48, 2, 4), nm_mask(10, 48, 1, 4)]),
        torch.cat([nm_mask(10, 48, 1, 8), torch.ones(10, 3, dtype=torch.bool)], 1),
    ],
)
def test_other_masks_are_refused(mask: Tensor) -> None:
    with pytest.raises(ValueError, match=r"keeps 1, 2, 4 or 8 of every 16 inputs .* try layout ell"):
        pack(torch.randn(mask.shape), mask, "nm")
    assert "nm" not in candidates(torch.rand(mask.shape) * mask, lanes=1)


def test_indices_of_8_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="indices of 16 bits"):
        pack(torch.randn(16, 32), nm_mask(16, 32, 2, 4), "nm", Pieces(96, 96, 8))


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_the_packer_finds_the_pattern(n: int, m: int) -> None:
    weight = (torch.rand(64, 768) + 0.1) * nm_mask(64, 768, n, m)
    assert candidates(weight, lanes=1)[0] == "nm"
    assert "nm" not in candidates(weight, lanes=16)
    assert pattern_of(weight) == f"{n}:{m}"


@needs_core
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("activation", ["relu", None])
def test_in_a_program(isa: str, activation: str | None) -> None:
    """A chain, so that the input of the second layer lies in the arena; and no width but 1."""
    first, second = torch.randn(70, 48) * nm_mask(70, 48, 2, 4), torch.randn(33, 70) * nm_mask(33, 70, 1, 4)
    nodes = (
        Node(kind="linear", output="y", inputs=("x",), weight=first, activation=activation),
        Node(kind="linear", output="z", inputs=("y",), weight=second, bias=torch.ones(33)),
    )
    graph = Graph(nodes, {"x": (48,), "y": (70,), "z": (33,)}, ("x",), ("z",))
    packed = {"y": pack(first, layout="nm"), "z": pack(second, layout="nm")}
    program = Program(graph, packed, 1, core.table(isa), poison=True)
    x = torch.randn(3, 48)
    y = ACTIVATIONS[activation][1](x.double() @ first.double().T)
    wanted = y @ second.double().T + 1
    assert torch.allclose(program.run([x])[0].double(), wanted, atol=1e-4)
    with pytest.raises(ValueError, match="does not run at these lanes"):
        Program(graph, packed, 16, core.table(isa))
