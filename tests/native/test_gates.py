"""The way of small calls: the same answers and the same refusals as the long way, from the second call on."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.native.gates import EXCHANGE, SMALL, gate_for
from secateur.native.loading import core
from secateur.runtime import linear, pack
from tests.runtime.oracle import activated, bound, product

pytestmark = pytest.mark.skipif(
    EXCHANGE is None, reason="torch has no table for reading tensors, or the core is absent"
)


class Traced(Tensor):
    """A subclass, whose memory may be anything."""


def refused(call: Callable[[], Tensor]) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 what it says is compared
        call()
    return str(caught.value)


WRONG: dict[str, Callable[[], Tensor]] = {
    "double": lambda: torch.zeros(1, 40).double(),
    "integers": lambda: torch.zeros(1, 40, dtype=torch.int32),
    "bf16": lambda: torch.zeros(1, 40, dtype=torch.bfloat16),
    "wide": lambda: torch.zeros(1, 41),
    "narrow": lambda: torch.zeros(1, 39),
    "scalar": lambda: torch.zeros(()),
    "meta": lambda: torch.zeros(1, 40, device="meta"),
    "sparse": lambda: torch.zeros(1, 40).to_sparse(),
    "gradients": lambda: torch.zeros(1, 40, requires_grad=True),
}


@pytest.mark.parametrize("samples", [1, 2, SMALL, SMALL + 1])
def test_every_call_is_right(samples: int) -> None:
    weight, bias = torch.randn(33, 40) * (torch.rand(33, 40) < 0.3), torch.randn(33)
    for layout in ("ell", "rows"):
        packed = pack(weight, layout=layout)
        before: list[Tensor] = []
        for _ in range(3):
            x = torch.randn(samples, 40)
            for added, activation in ((None, None), (bias, "relu")):
                y = linear(x, packed, added, activation)
                error = (y.double().numpy() - activated(product(x, weight, weight != 0, added), activation)).__abs__()
                assert y.is_contiguous()
                assert y.shape == (samples, 33)
                assert (error <= bound(x, weight, weight != 0, added)).all()
                assert all(y.data_ptr() != other.data_ptr() for other in before)
                before.append(y)
        assert (packed.gate.multiply(x, None, 0) is None) == (samples > SMALL)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused_stays_refused(name: str) -> None:
    packed = pack(torch.randn(8, 40))
    first = refused(lambda: linear(WRONG[name](), packed))
    linear(torch.zeros(1, 40), packed)
    assert refused(lambda: linear(WRONG[name](), packed)) == first
    assert packed.gate.multiply(WRONG[name](), None, 0) is None
    assert packed.gate.multiply(torch.zeros(1, 40), None, 0) is not None


@pytest.mark.parametrize(
    "bias", [torch.zeros(7), torch.zeros(8).double(), torch.zeros(1, 8), torch.zeros(8, device="meta")]
)
def test_a_wrong_bias(bias: Tensor) -> None:
    packed = pack(torch.randn(8, 40))
    linear(torch.zeros(1, 40), packed)
    assert "bias: expected float32" in refused(lambda: linear(torch.zeros(1, 40), packed, bias))
    assert "activation 'tanh'" in refused(lambda: linear(torch.zeros(1, 40), packed, None, "tanh"))


def test_what_takes_the_long_way_gives_the_same() -> None:
    packed, bias = pack(torch.randn(8, 40)), torch.randn(16)[::2]
    x = torch.randn(1, 40)
    wanted = linear(x, packed, bias.contiguous())
    spread = torch.randn(1, 80)[:, ::2].copy_(x)
    assert packed.gate.multiply(spread, None, 0) is None
    assert packed.gate.multiply(x.as_subclass(Traced), None, 0) is None
    assert torch.equal(linear(spread, packed, bias), wanted)
    assert torch.equal(linear(x[0], packed, bias), wanted[0])
    with torch.no_grad():
        assert torch.equal(linear(x.clone().requires_grad_(), packed, bias), wanted)
    for again in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        for _ in range(2):
            assert torch.equal(linear(x, again, bias), wanted)
    assert linear(torch.zeros(0, 40), packed).shape == (0, 8)


def test_what_a_gate_lets_through() -> None:
    gate, other = gate_for((40,)), pack(torch.ones(8, 40))
    assert gate.run(torch.zeros(1, 40)) is None
    for samples in (0, SMALL + 1):
        with pytest.raises(ValueError, match="1 to 16 samples"):
            gate.learn(samples, other.native, torch.zeros(1, 8))
    gate.learn(1, other.native, torch.zeros(1, 8))
    assert gate.run(torch.zeros(1, 40)) is None  # it is no program
    assert gate.run(None) is None
    assert gate.multiply(torch.full((1, 40), math.inf), None, 0).tolist() == [[math.inf] * 8]
    pair = core.Program(1, 16, [4, 4], [4])
    with pytest.raises(ValueError, match="one input and one output"):
        gate.learn(1, pair, torch.zeros(1, 4))


def test_a_packed_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    sc.prune(model, 0.9)
    fast = sc.pack(model, torch.randn(1, 40), threads=1, cache=False)
    region = fast.regions[0]
    for _ in range(3):
        x = torch.randn(1, 40)
        with torch.no_grad():
            assert torch.allclose(region(x), model(x), atol=1e-5)
    gate: Any = region._gate
    assert (gate.run(x) is None) == (not region.chosen[1].wins)
    wrong = {name: refused(lambda make=make: region(make())) for name, make in WRONG.items() if name != "scalar"}
    assert all("expected dense float32" in says or "requires gradients" in says for says in wrong.values())
    again = pickle.loads(pickle.dumps(region))
    for _ in range(2):
        assert torch.allclose(again(x), region(x), atol=1e-6)
