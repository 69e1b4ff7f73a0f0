"""Programs and `pack` in int8: values stay float32 between layers, formats side by side, candidates, files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.deploy.pack.packed import PackedModel
from secateur.native.loading import core
from secateur.runtime import Packed, Pieces, pack
from secateur.runtime.candidates import candidates, pattern_of
from secateur.runtime.choose import choose, fits, pack_layer
from secateur.runtime.graph import Graph, Node
from secateur.runtime.program import LANES, Program
from secateur.runtime.quads import LONGEST
from secateur.runtime.remember import entry_of, rebuild, structure
from tests.native.oracle import instruction_sets, needs_core
from tests.runtime.int8_oracle import product, some_mask
from tests.runtime.word_nets import network, packed_as, step_by_step


def mask(rows: int, cols: int) -> Tensor:
    return some_mask(rows, cols, 0.25, "quads-int8")


@needs_core
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("lanes", LANES)
def test_programs(isa: str, lanes: int, spread: bool) -> None:
    """A value may fall on the next number of its grid where sums differ in their last bit, hence the tolerance."""
    graph = network(mask)
    layouts = ("quads-ell-int8", "quads-csr-int8") if lanes == 1 else ("quads-int8", "quads-rows-int8")
    weights = packed_as(graph, layouts, Pieces(96, 96, 16 if lanes == 1 else 8))
    program = Program(graph, weights, lanes, core.table(isa), poison=True, spread=spread)
    if spread:
        program.share(2, "own", [1000.0] * len(program.names))
        assert program.names.count("in") >= 4  # a grid and words for each value
    core.pool_insist(spread)
    try:
        for samples in (1, lanes, 2 * lanes + 3):
            x = torch.randn(samples, 193)
            wanted = step_by_step(graph, x, product)
            for name, found in zip(graph.outputs, program.run([x]), strict=True):
                error = np.abs(found.numpy() - wanted[name])
                assert error.max() < 0.03, name
                assert np.median(error) < 1e-6 or name == "v6", name
    finally:
        core.pool_insist(False)


@needs_core
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_formats_live_side_by_side(turn: int) -> None:
    graph = network(mask)
    layouts = ("quads-int8", "even", "pairs-bf16")
    weights = packed_as(graph, (*layouts[turn:], *layouts[:turn]))
    x = torch.randn(20, 193)
    wanted = step_by_step(graph, x, product)
    for name, found in zip(graph.outputs, Program(graph, weights, 32, poison=True).run([x]), strict=True):
        assert np.allclose(found.numpy(), wanted[name], atol=0.08), name


@needs_core
def test_what_is_not_finite_stays_in_its_sample() -> None:
    graph = network(mask)
    for lanes, layout in ((16, "quads-int8"), (64, "block16-int8"), (1, "quads-ell-int8")):
        dense = layout.startswith("block16")
        weights = {
            node.output: pack(node.weight, torch.ones_like(node.weight).bool() if dense else None, layout)
            for node in graph.nodes
            if node.weight is not None
        }
        program, x = Program(graph, weights, lanes, poison=True), torch.randn(20, 193)
        clean = program.run([x])
        x[7, 3] = torch.inf
        others = torch.arange(20) != 7
        for before, after in zip(clean, program.run([x]), strict=True):
            assert bool(after[7].isnan().all())
            assert torch.equal(before[others], after[others])


@needs_core
def test_rows_that_are_not_there_pass_nothing_on() -> None:
    """A kernel of 16 rows makes NaN of those behind the last one; the next layer's padding must not meet it."""
    first = Node(kind="linear", inputs=("x",), output="h", weight=torch.ones(101, 8))
    second = Node(kind="linear", inputs=("h",), output="y", weight=torch.zeros(64, 101), bias=torch.ones(64))
    graph = Graph((first, second), {"x": (8,), "h": (101,), "y": (64,)}, ("x",), ("y",))
    uneven = torch.zeros(64, 101, dtype=torch.bool)
    uneven[0, :50] = True
    weights = {
        "h": pack(torch.ones(101, 8), layout="block16-int8"),
        "y": pack(torch.zeros(64, 101), uneven, "even"),
    }
    x = torch.ones(20, 8)
    x[3] = torch.nan
    found = Program(graph, weights, 32, poison=True).run([x])[0]
    assert bool(found[3, 0].isnan())
    assert bool((found[3, 1:] == 1).all())


@needs_core
def test_misuse_is_refused() -> None:
    arena, out = core.Place(core.Where.arena, 0), core.Place(core.Where.output, 0)
    with pytest.raises(ValueError, match="to_words goes"):
        core.ToGrid(core.active, 4, 16, arena, out)
    with pytest.raises(ValueError, match="to_words makes pairs or quads"):
        core.ToWords(core.active, 1, 4, 16, arena, arena)
    with pytest.raises(ValueError, match="1, 2 or 4 inputs"):
        core.ToWords(core.active, 3, 4, 16, arena, arena)


@needs_core
def test_candidates() -> None:
    weight = torch.randn(64, 64) * some_mask(64, 64, 0.1, "quads-int8")
    assert pattern_of(weight) == "blocks 1x4"
    for lanes in LANES:
        plain, both = candidates(weight, lanes), candidates(weight, lanes, torch.int8)
        assert both[: len(plain)] == plain
        assert set(both) > set(plain)
        assert all(name.endswith("int8") for name in both[len(plain) :])
    assert "dense-int8" in candidates(torch.ones(16, 16), 64, torch.int8)
    strange = weight.clone()
    strange[0, 0] = torch.inf
    for bad in (strange, torch.ones(1, LONGEST + 1)):
        assert candidates(bad, 64, torch.int8) == candidates(bad, 64)


@needs_core
@pytest.mark.parametrize("lanes", [1, 16])
def test_all_candidates_pack(lanes: int) -> None:
    weight = torch.randn(40, 31) * some_mask(40, 31, 0.3, "quads-int8")
    node = Node(kind="linear", inputs=("x",), output="y", weight=weight)
    graph = Graph((node,), {"x": (31,), "y": (40,)}, ("x",), ("y",))
    names = candidates(weight, lanes, torch.int8)
    x = torch.randn(5, 31)
    wanted, bound = product(x, weight, weight != 0)
    for name in names:
        for threads in (1, 2):
            packed = pack_layer(graph, node, name, threads)
            assert isinstance(packed, Packed)
            found = Program(graph, {"y": packed}, lanes, poison=True).run([x])[0].double().numpy()
            assert np.allclose(found, wanted, atol=0.2)
            assert (np.abs(found - wanted) <= bound).all() == name.endswith("int8")
    assert fits(graph, {"y": names[-1]}, lanes, torch.int8)
    assert not fits(graph, {"y": names[-1]}, lanes)
    assert not fits(graph, {"y": names[-1]}, lanes, torch.bfloat16)


@needs_core
def test_choices_are_remembered_apart_from_those_of_other_formats() -> None:
    node = Node(
        kind="linear", inputs=("x",), output="y", weight=torch.randn(32, 32) * some_mask(32, 32, 0.1, "quads-int8")
    )
    graph = Graph((node,), {"x": (32,), "y": (32,)}, ("x",), ("y",))
    assert len({structure(graph, 64, dtype) for dtype in (torch.int8, torch.bfloat16, torch.float32)}) == 3
    x = [torch.randn(64, 32)]
    chosen = choose(graph, x, 64, {"y": "quads-int8"}, dtype=torch.int8)
    entry = entry_of(graph, chosen)
    again = rebuild(graph, entry, x, 1, dtype=torch.int8)
    assert again is not None
    assert torch.equal(again.program.run(x)[0], chosen.program.run(x)[0])
    assert rebuild(graph, entry, x, 1) is None


@needs_core
def test_convolutions_stay_float32() -> None:
    node = Node(kind="conv", inputs=("x",), output="y", weight=torch.eye(16)[:, :, None, None])
    graph = Graph((node,), {"x": (16, 5, 5), "y": (16, 5, 5)}, ("x",), ("y",))
    x = [torch.randn(2, 16, 5, 5)]
    chosen = choose(graph, x, 1, dtype=torch.int8)
    assert not any(name.endswith("int8") for name in chosen.layers[0].tried)
    assert torch.equal(chosen.program.run(x)[0], x[0])


@pytest.fixture
def always_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program wins, and int8 wins in it, whatever the clock says."""
    from secateur.runtime import choose as module

    monkeypatch.setattr(module, "interleaved", lambda calls: [1.0, *[2.0] * (len(calls) - 1)])
    monkeypatch.setattr("secateur.deploy.pack.packed.interleaved", lambda calls, seconds: [1.0, 2.0])
    real = module.layouts_of

    def only_int8(*args: Any) -> tuple[str, ...]:
        return tuple(name for name in real(*args) if name.endswith("int8")) or real(*args)

    monkeypatch.setattr(module, "layouts_of", only_int8)


def pruned(inputs: int) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(192, 320), nn.ReLU(), nn.Linear(320, 16)).eval()
    sc.prune(net, 0.8, unit=f"block(1, {inputs})").commit()
    return net


@needs_core
@pytest.mark.usefixtures("always_packed")
def test_pack_in_int8() -> None:
    net, x = pruned(4), torch.randn(64, 192)
    plain = sc.pack(net, x, threads=1, cache=False)
    fast = sc.pack(net, x, threads=1, dtype=torch.int8, cache=False)
    lines = next(iter(fast.regions[0].chosen.values())).layers
    assert all(line.layout.endswith("int8") for line in lines)
    assert not any(
        "int8" in name for line in next(iter(plain.regions[0].chosen.values())).layers for name in line.tried
    )
    assert "int8" in str(fast.explain())
    with torch.no_grad():
        error = (fast(x) - net(x)).abs().max()
        assert 1e-4 < error < 0.03
        assert torch.equal(pickle.loads(pickle.dumps(fast))(x), fast(x))
    with pytest.raises(ValueError, match="int8"):
        sc.pack(net, x, dtype=torch.float16)


@needs_core
@pytest.mark.usefixtures("always_packed")
@pytest.mark.parametrize("inputs", [2, 4])
@pytest.mark.parametrize("blobs", [True, False])
def test_files(tmp_path: Path, blobs: bool, inputs: int) -> None:
    net, x = pruned(inputs), torch.randn(64, 192)
    fast = sc.pack(net, x, threads=1, dtype=torch.int8, cache=False)
    sc.save(fast, tmp_path / "model", blobs=blobs)
    again = sc.load(tmp_path / "model")
    assert isinstance(again, PackedModel)
    assert torch.equal(again(x), fast(x))
    assert again.regions[0].dtype == torch.int8
    assert all(line.layout.endswith("int8") for line in next(iter(again.regions[0].chosen.values())).layers)
