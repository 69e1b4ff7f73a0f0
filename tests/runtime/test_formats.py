"""Packing and unpacking: laws, bytes, what is refused, and the form for files."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.native.loading import core
from secateur.runtime import LAYOUTS, BlockedCsr, Packed, Pieces, formats, pack
from tests.runtime.oracle import BLOCKED, FREE, UNSTRUCTURED, random_mask

SIZES = st.integers(0, 70) | st.integers(95, 97) | st.integers(190, 210)


def bits_of(weight: torch.Tensor) -> list[int]:
    return weight.view(torch.int32).reshape(-1).tolist()


@given(SIZES, SIZES, st.sampled_from(FREE), st.floats(0, 1), st.integers(1, 2), st.integers(1, 2))
def test_round_trip(rows: int, cols: int, layout: str, density: float, chunk: int, block: int) -> None:
    """Weights bit by bit, kept zeros and NaN among them, however the matrix is cut."""
    mask = random_mask(rows, cols, density, layout)
    weight = torch.randint(-(2**31), 2**31, (rows, cols), dtype=torch.int64).int().view(torch.float32)
    weight[mask] = torch.where(torch.rand(int(mask.sum())) < 0.1, -0.0, weight[mask])
    bits = LAYOUTS[layout].cut(rows, cols, density).bits
    for pieces in (None, Pieces(96 * chunk, 96 * block, bits)):
        packed = pack(weight, mask, layout, pieces)
        dense, kept = packed.dense()
        assert torch.equal(kept, mask)
        assert bits_of(dense) == bits_of(torch.where(mask, weight, 0.0))
        assert packed.nnz == int(mask.sum())


@given(SIZES, SIZES, st.sampled_from([1, 4, 8, 16]), st.floats(0, 1))
def test_canonical_round_trip(rows: int, cols: int, unit: int, density: float) -> None:
    layout = "csr" if unit == 1 else f"block{unit}"
    mask = random_mask(rows, cols, density, layout)
    weight = torch.randn(rows, cols)
    form = BlockedCsr.from_tensors(BlockedCsr.from_dense(weight, mask, unit).tensors())
    dense, kept = form.to_dense()
    assert torch.equal(kept, mask)
    assert bits_of(dense) == bits_of(torch.where(mask, weight, 0.0))


@pytest.mark.parametrize("layout", FREE)
def test_what_is_not_kept_is_told_apart_from_zero(layout: str) -> None:
    weight = torch.zeros(16, 5)
    mask = torch.zeros(16, 5, dtype=torch.bool)
    mask[:, 2] = True
    assert pack(weight, mask, layout).nnz == 16
    assert pack(weight, None, layout).nnz == 0


@pytest.mark.parametrize(
    ("layout", "density", "most"),
    [
        ("rows", 0.5, 1.0),
        ("rows", 0.1, 1.1),
        ("rows", 0.05, 1.1),
        ("even", 0.3, 1.1),
        ("even", 0.05, 1.1),
        ("even", 0.02, 1.3),
        ("csr", 0.02, 1.3),
        ("ell", 0.5, 1.1),
        ("ell", 0.1, 1.45),
        ("ell-twin", 0.1, 1.25),
        ("ell-twin", 0.05, 1.4),
        ("block4", 0.1, 1.0),
        ("block16", 0.1, 0.9),
    ],
)
def test_bytes(layout: str, density: float, most: float) -> None:
    """Against 5 bytes per kept weight."""
    mask = random_mask(768, 768, density, layout)
    packed = pack(torch.randn(768, 768), mask, layout)
    assert packed.overhead == packed.nbytes / (5 * int(mask.sum())) <= most
    assert sum(tensor.nbytes for tensor in packed.tensors().values()) == packed.nbytes


def test_a_packed_weight_shares_no_memory() -> None:
    weight = torch.randn(20, 30)
    packed = pack(weight, layout="csr")
    before = packed.dense()[0]
    weight.zero_()
    packed.tensors()["values"].zero_()
    assert torch.equal(packed.dense()[0], before)


@pytest.mark.parametrize("layout", FREE)
def test_copies_and_pickles(layout: str) -> None:
    packed = pack(torch.randn(33, 40), random_mask(33, 40, 0.3, layout), layout)
    for again in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(again.dense()[0], packed.dense()[0])
        assert (again.layout, again.shape, again.pieces) == (packed.layout, packed.shape, packed.pieces)
    assert repr(packed).startswith(f"Packed({layout}, 33 x 40, ")


@pytest.mark.parametrize("layout", BLOCKED)
@pytest.mark.parametrize("row", [0, 17])
def test_a_mask_that_cuts_blocks_is_refused(layout: str, row: int) -> None:
    mask = torch.ones(20, 6, dtype=torch.bool)
    mask[row, 3] = False
    with pytest.raises(ValueError, match=r"it cuts the one in rows \d+ to \d+, column 3; try an unstructured layout"):
        pack(torch.randn(20, 6), mask, layout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": torch.ones(2, 3).double()}, "weight: expected a dense float32 matrix .* got torch.float64"),
        ({"weight": torch.ones(3)}, r"got torch.float32 of shape \(3,\)"),
        ({"weight": torch.ones(2, 3, device="meta")}, "on meta"),
        ({"mask": torch.ones(2, 3)}, "mask: expected bool .* got torch.float32"),
        ({"mask": torch.ones(3, 2, dtype=torch.bool)}, r"shape \(3, 2\)"),
        ({"layout": "coo"}, "layout 'coo': allowed are rows, even"),
        ({"layout": "csr", "pieces": Pieces(96, 96, 8)}, "indices of 16 bits"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"weight": torch.ones(2, 3)} | arguments
    with pytest.raises(ValueError, match=message):
        pack(**given)


@pytest.mark.parametrize(
    "numbers", [(95, 96, 8), (0, 96, 8), (65568, 96, 8), (96, 288, 8), (96, 0, 8), (96, 96, 32), (96, 65568, 16)]
)
def test_pieces_that_no_kernel_takes(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Pieces(*numbers)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("layout", FREE)
@pytest.mark.parametrize("name", ["counts", "index", "values"])
@pytest.mark.parametrize("damage", ["short", "long", "high"])
def test_damaged_streams_are_refused(
    layout: str, name: str, damage: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native and core is None:
        pytest.skip("the C++ core is absent")
    if not native:
        monkeypatch.setattr(formats, "core", None)
    packed = pack(torch.randn(40, 50), random_mask(40, 50, 0.5, layout), layout)
    streams = packed.tensors()
    if damage == "short":
        streams[name] = streams[name][:-1]
    elif damage == "long":
        streams[name] = torch.cat([streams[name], streams[name][-1:]])
    elif name == "values":
        streams[name] = streams[name].double()
    else:
        streams[name].view(torch.uint8).fill_(0x7F)
    with pytest.raises(ValueError, match=r"packed weights|values: expected"):
        Packed(layout, packed.shape, packed.pieces, streams)


def test_a_missing_stream() -> None:
    packed = pack(torch.ones(2, 3))
    with pytest.raises(ValueError, match="'index' is missing"):
        Packed("rows", (2, 3), packed.pieces, {"counts": torch.zeros(1, dtype=torch.uint8), "values": torch.zeros(1)})


@pytest.mark.parametrize("layout", UNSTRUCTURED)
def test_n_of_m_along_the_inputs_goes_unstructured(layout: str) -> None:
    mask = torch.tensor([True, False, False, True]).repeat(32, 8)
    packed = pack(torch.ones(32, 32), mask, layout)
    assert torch.equal(packed.dense()[1], mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"header": torch.tensor([9, 4, 5, 1])}, "another version of secateur wrote this"),
        ({"columns": torch.tensor([0, 1, 5, 2], dtype=torch.int32)}, "columns: expected numbers from 0 to 4"),
        ({"starts": torch.tensor([0, 3, 2, 4, 4])}, "starts: expected to rise from 0 to 4"),
        ({"values": torch.zeros(4, 2)}, r"values: expected torch.float32 of shape \(4, 1\)"),
        ({"values": None}, r"\['values'\] are missing"),
    ],
)
def test_damaged_files(change: dict, message: str) -> None:
    weight = torch.zeros(4, 5)
    weight[[0, 1, 1, 3], [0, 1, 4, 2]] = 1
    tensors = BlockedCsr.from_dense(weight, weight != 0).tensors() | change
    with pytest.raises(ValueError, match=message):
        BlockedCsr.from_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None})
