"""From row-major samples to row-major outputs: narrow panels, samples that share places in a cache, large outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.native.loading import core
from secateur.runtime import Packed, Pieces, pack
from secateur.runtime.graph import Graph, Node
from secateur.runtime.program import Program
from tests.native.oracle import instruction_sets, needs_core
from tests.runtime.oracle import bound, handle_of, product, random_mask, run

pytestmark = needs_core

NARROW = 500  # inputs whose panel of 32 samples does not fit the first cache, and 250 need less
LARGE = 600  # samples of 1,000 outputs that take more than 2 MiB


def weight_of(rows: int, cols: int) -> Tensor:
    torch.manual_seed(rows + cols)
    return torch.randn(rows, cols) * random_mask(rows, cols, 0.1, "even-wide")


def blocked(rows: int, cols: int) -> Tensor:
    """Weights in blocks of 16 outputs by 4 inputs, which every layout of blocks can hold."""
    torch.manual_seed(rows + cols)
    kept = torch.rand(-(-rows // 16), -(-cols // 4)) < 0.2
    return torch.randn(rows, cols) * kept.repeat_interleave(16, 0).repeat_interleave(4, 1)[:rows, :cols]


def permutation(rows: int, cols: int) -> tuple[Packed, Tensor]:
    """Every output is one input: nothing is rounded."""
    torch.manual_seed(rows + cols)
    order = torch.randint(0, cols, (rows,))
    weight = torch.zeros(rows, cols)
    weight[torch.arange(rows), order] = 1.0
    return pack(weight, layout="csr"), order


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("chunk", [96, 192])
@pytest.mark.parametrize("cols", [96, NARROW // 2, NARROW])
def test_narrow_panels_against_float64(isa: str, chunk: int, cols: int) -> None:
    weight = weight_of(131, cols)
    bias = torch.randn(131)
    packed = pack(weight, layout="even-wide", pieces=Pieces(chunk, 576, 16))
    handle = handle_of(packed, isa)
    for samples in (1, 16, 17, 33, 64, 65, 100):
        x = torch.randn(samples, cols)
        error = np.abs(run(handle, packed, x, bias) - product(x, weight, weight != 0, bias))
        assert (error <= bound(x, weight, weight != 0, bias)).all(), samples


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("layout", ["block4", "block8", "block16"])
@pytest.mark.parametrize("chunk", [96, 192])
@pytest.mark.parametrize("rows", [192, 272, 290])
def test_chunks_that_leave_while_the_next_is_made(isa: str, layout: str, chunk: int, rows: int) -> None:
    """The last chunk whole or short, in whole squares and not; samples in whole panels and not."""
    weight, bias = blocked(rows, 60), torch.randn(rows)
    packed = pack(weight, layout=layout, pieces=Pieces(chunk, 96, 16))
    for samples in (16, 32, 40, 64, 128, 144):
        x = torch.randn(samples, 60)
        error = np.abs(run(handle_of(packed, isa), packed, x, bias) - product(x, weight, weight != 0, bias))
        assert (error <= bound(x, weight, weight != 0, bias)).all(), samples


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(
    "layout",
    ["even", "even-wide", "pairs-wide-bf16", "quads-wide-int8", "block4", "block16", "block16-bf16", "block16-int8"],
)
def test_bits_do_not_depend_on_the_way(isa: str, layout: str) -> None:
    """A program whose inputs are panels already takes 64 samples side by side and turns each chunk when it is done."""
    rows, cols = 208, 4 * NARROW
    weight, bias = blocked(rows, cols) if layout.startswith("block") else weight_of(rows, cols), torch.randn(rows)
    packed = pack(weight, layout=layout)
    layer = Node(kind="linear", name="layer", inputs=("x",), output="y", weight=weight, bias=bias)
    graph = Graph((layer,), {"x": (cols,), "y": (rows,)}, ("x",), ("y",))
    wide = Program(graph, {"y": packed}, 64, core.table(isa), poison=True, spread=True)
    for samples in (64, 90):
        x = torch.randn(samples, cols)
        found = torch.from_numpy(run(handle_of(packed, isa), packed, x, bias)).float()
        assert torch.equal(found, wide.run([x])[0])
        if layout.startswith("block"):
            continue  # with 16 samples two sums run side by side
        parts = [run(handle_of(packed, isa), packed, part, bias) for part in x.split(16)]
        assert torch.equal(found, torch.from_numpy(np.concatenate(parts)).float())


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("samples", [16, 17, 64, 70])
@pytest.mark.parametrize(("rows", "cols"), [(1024, 1024), (1024, 100), (100, 1024), (2048, 3072)])
def test_samples_that_share_their_places_in_a_cache(isa: str, samples: int, rows: int, cols: int) -> None:
    packed, order = permutation(rows, cols)
    x = torch.randn(samples, cols)
    found = run(handle_of(packed, isa), packed, x, None)
    assert torch.equal(torch.from_numpy(found).float(), x[:, order])


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("rows", [1000, 1008, 1024])
@pytest.mark.parametrize("offset", [0, 1, 8])
def test_outputs_larger_than_the_caches(isa: str, rows: int, offset: int) -> None:
    """In whole lines and not, wherever the memory begins, and not a float beyond."""
    packed, order = permutation(rows, 40)
    x = torch.randn(LARGE, 40)
    memory = torch.full((16 + offset + LARGE * rows + 16,), 7.0)
    begin = 16 + offset
    end = begin + LARGE * rows
    handle_of(packed, isa).run(x.data_ptr(), LARGE, memory[begin:].data_ptr(), 0, 0)
    assert torch.equal(memory[begin:end].view(LARGE, rows), x[:, order])
    assert bool((memory[:begin] == 7).all())
    assert bool((memory[end:] == 7).all())


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("spread", [False, True])
def test_large_outputs_of_programs(isa: str, spread: bool) -> None:
    packed, order = permutation(1024, 40)
    weight = packed.dense()[0]
    layer = Node(kind="linear", name="layer", inputs=("x",), output="y", weight=weight)
    copy = Node(kind="add", name="copy", inputs=("y",), output="z")
    x = torch.randn(LARGE, 40)
    for nodes, name in (((layer,), "y"), ((layer, copy), "z")):
        shapes = {"x": (40,), **{node.output: (1024,) for node in nodes}}
        program = Program(Graph(nodes, shapes, ("x",), (name,)), {"y": packed}, 64, core.table(isa), spread=spread)
        assert torch.equal(program.run([x])[0], x[:, order])
