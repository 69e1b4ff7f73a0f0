"""Programs and `pack` in bf16: values stay float32 between layers, formats side by side, candidates, refusals."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.native.loading import core
from secateur.runtime import Packed, Pieces, pack
from secateur.runtime.candidates import candidates, pattern_of
from secateur.runtime.choose import choose, fits, pack_layer
from secateur.runtime.graph import Graph, Node
from secateur.runtime.program import LANES, Program
from tests.native.oracle import instruction_sets, needs_core
from tests.runtime.bf16_oracle import product, some_mask
from tests.runtime.word_nets import network, packed_as, step_by_step


def mask(rows: int, cols: int) -> Tensor:
    return some_mask(rows, cols, 0.25, "pairs-bf16")


@needs_core
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("lanes", LANES)
def test_programs(isa: str, lanes: int, spread: bool) -> None:
    """Rounding may go the other way where sums differ in their last bit: a step of bf16, hence the tolerance."""
    graph = network(mask)
    layouts = ("pairs-ell-bf16", "pairs-csr-bf16") if lanes == 1 else ("pairs-bf16", "pairs-rows-bf16")
    weights = packed_as(graph, layouts, Pieces(96, 96, 16 if lanes == 1 else 8))
    program = Program(graph, weights, lanes, core.table(isa), poison=True, spread=spread)
    if spread:
        program.share(2, "own", [1000.0] * len(program.names))
        assert program.names.count("in") >= 2
    core.pool_insist(spread)
    try:
        for samples in (1, lanes, 2 * lanes + 3):
            x = torch.randn(samples, 193)
            wanted = step_by_step(graph, x, product)
            for name, found in zip(graph.outputs, program.run([x]), strict=True):
                assert np.allclose(found.numpy(), wanted[name], atol=8e-3), name
    finally:
        core.pool_insist(False)


@needs_core
def test_formats_live_side_by_side() -> None:
    graph = network(mask)
    for turn in (0, 1):
        weights = packed_as(graph, ("even", "pairs-bf16") if turn else ("pairs-bf16", "even"))
        x = torch.randn(20, 193)
        wanted = step_by_step(graph, x, product)
        for name, found in zip(graph.outputs, Program(graph, weights, 32, poison=True).run([x]), strict=True):
            assert np.allclose(found.numpy(), wanted[name], atol=0.03), name


@needs_core
def test_only_pairs_are_read_rounded() -> None:
    place, x = core.Place(core.Where.arena, 0), pack(torch.ones(4, 4), layout="even")
    with pytest.raises(ValueError, match="only weights in words read words"):
        core.Linear(x.native, 16, place, place, None, 0, 0, True)
    with pytest.raises(ValueError, match="to_words goes"):
        core.ToWords(core.active, 2, 4, 16, place, core.Place(core.Where.output, 0))


def test_candidates() -> None:
    weight = torch.randn(64, 64) * some_mask(64, 64, 0.1, "pairs-bf16")
    assert pattern_of(weight) == "blocks 1x2"
    for lanes in LANES:
        plain, both = candidates(weight, lanes), candidates(weight, lanes, torch.bfloat16)
        assert both[: len(plain)] == plain
        assert set(both) > set(plain)
        assert all(name.endswith("bf16") for name in both[len(plain) :])
    assert "dense-bf16" in candidates(torch.ones(16, 16), 64, torch.bfloat16)


@needs_core
@pytest.mark.parametrize("lanes", [1, 16])
def test_all_candidates_pack(lanes: int) -> None:
    weight = torch.randn(40, 31) * some_mask(40, 31, 0.3, "pairs-bf16")
    node = Node(kind="linear", inputs=("x",), output="y", weight=weight)
    graph = Graph((node,), {"x": (31,), "y": (40,)}, ("x",), ("y",))
    names = candidates(weight, lanes, torch.bfloat16)
    x = torch.randn(5, 31)
    wanted, bound = product(x, weight, weight != 0)
    for name in names:
        for threads in (1, 2):
            packed = pack_layer(graph, node, name, threads)
            assert isinstance(packed, Packed)
            found = Program(graph, {"y": packed}, lanes, poison=True).run([x])[0].double().numpy()
            assert np.allclose(found, wanted, atol=0.1)
            assert (np.abs(found - wanted) <= bound).all() == name.endswith("bf16")
    assert fits(graph, {"y": names[-1]}, lanes, torch.bfloat16)
    assert not fits(graph, {"y": names[-1]}, lanes)


@needs_core
def test_convolutions_stay_float32() -> None:
    node = Node(kind="conv", inputs=("x",), output="y", weight=torch.eye(16)[:, :, None, None])
    graph = Graph((node,), {"x": (16, 5, 5), "y": (16, 5, 5)}, ("x",), ("y",))
    x = [torch.randn(2, 16, 5, 5)]
    chosen = choose(graph, x, 1, dtype=torch.bfloat16)
    assert not any(name.endswith("bf16") for name in chosen.layers[0].tried)
    assert torch.equal(chosen.program.run(x)[0], x[0])


@needs_core
def test_pack_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bfloat16 is asked for: its kernels are timed, the fastest one runs; without it none is there."""
    net = nn.Sequential(nn.Linear(192, 320), nn.ReLU(), nn.Linear(320, 10)).eval()
    with torch.no_grad():
        for place in (0, 2):
            net[place].weight.mul_(some_mask(*net[place].weight.shape, 0.2, "pairs-bf16"))
    x = torch.randn(64, 192)
    monkeypatch.setattr("secateur.runtime.choose.interleaved", lambda calls: [1.0, *[2.0] * (len(calls) - 1)])
    monkeypatch.setattr("secateur.deploy.pack.packed.interleaved", lambda calls, seconds: [1.0, 2.0])
    plain = sc.pack(net, x, threads=1, cache=False)
    half = sc.pack(net, x, threads=1, dtype=torch.bfloat16, cache=False)
    tried = [{*layer.tried} for layer in next(iter(half.regions[0].chosen.values())).layers]
    assert all("pairs-bf16" in names and "even" in names for names in tried)
    assert not any(
        "bf16" in name for layer in next(iter(plain.regions[0].chosen.values())).layers for name in layer.tried
    )
    with torch.no_grad():
        assert torch.allclose(half(x), net(x), atol=0.03)
        assert torch.allclose(pickle.loads(pickle.dumps(half))(x), half(x), atol=1e-5)
    with pytest.raises(ValueError, match="bfloat16"):
        sc.pack(net, x, dtype=torch.float16)
