"""`linear` as a user meets it: any shape, clear refusals, the torch reference where the core is absent."""

from __future__ import annotations

import gc
import math
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from secateur.native.loading import core
from secateur.runtime import ACTIVATIONS, formats, linear, pack
from tests.runtime.oracle import FREE, activated, bound, product, random_mask


@pytest.fixture(params=["core", "reference"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "reference":
        monkeypatch.setattr(formats, "core", None)
    elif core is None:
        pytest.skip("the C++ core is absent")
    return request.param


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", FREE)
def test_core_and_reference_agree_with_the_oracle(either: str, layout: str, activation: str | None) -> None:
    torch.manual_seed(0)
    weight, bias, mask = torch.randn(50, 70), torch.randn(50), random_mask(50, 70, 0.2, layout)
    packed = pack(weight, mask, layout)
    assert (packed.native is not None) == (either == "core")
    for samples in (1, 2, 64, 81):
        x = torch.randn(samples, 70)
        error = np.abs(
            linear(x, packed, bias, activation).numpy() - activated(product(x, weight, mask, bias), activation)
        )
        assert (error <= 2 * bound(x, weight, mask, bias) + 5e-7).all()


@pytest.mark.parametrize("shape", [(30,), (4, 30), (2, 3, 30), (0, 30), (2, 0, 30), (1, 1, 30)])
def test_leading_axes_stay(either: str, shape: tuple[int, ...]) -> None:
    weight = torch.randn(7, 30)
    y = linear(torch.ones(shape), pack(weight))
    assert y.shape == (*shape[:-1], 7)
    assert torch.allclose(y, weight.sum(1).expand(y.shape), atol=1e-5)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("layout", FREE)
def test_matrices_without_rows_or_columns(either: str, layout: str, size: tuple[int, int]) -> None:
    rows, cols = size
    packed = pack(torch.ones(rows, cols), layout=layout)
    for samples in (0, 1, 20):
        y = linear(torch.ones(samples, cols), packed, torch.full((rows,), -3.0), "relu")
        assert torch.equal(y, torch.zeros(samples, rows))


def test_strides_of_any_kind(either: str) -> None:
    weight, bias = torch.randn(9, 12), torch.randn(18)[::2]
    packed = pack(weight)
    x = torch.randn(12, 40)
    wanted = product(x.t(), weight, weight != 0, bias)
    assert np.allclose(linear(x.t(), packed, bias).numpy(), wanted, atol=1e-5)
    assert np.allclose(linear(torch.randn(40, 24)[:, ::2].copy_(x.t()), packed, bias).numpy(), wanted, atol=1e-5)
    assert np.allclose(linear(x.t()[:1].expand(5, 12), packed, bias).numpy(), wanted[:1].repeat(5, 0), atol=1e-5)
    assert np.allclose(linear(x[:, 0], pack(weight.t().contiguous().t()), bias).numpy(), wanted[0], atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_removed_weights_contribute_nothing(either: str, value: float) -> None:
    x = torch.ones(3, 4)
    x[1, 2] = value
    weight = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    y = linear(x, pack(weight))
    assert y[:, 0].tolist() == [2, 2, 2]
    assert y[[0, 2], 1].tolist() == [1, 1]
    assert not math.isfinite(y[1, 1])


def test_a_layer_is_a_drop_in(either: str) -> None:
    layer = nn.Linear(64, 32)
    with torch.no_grad():
        layer.weight[torch.rand(32, 64) < 0.8] = 0
    x = torch.randn(10, 64)
    with torch.no_grad():
        assert torch.allclose(linear(x, pack(layer.weight), layer.bias), layer(x), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.ones(2, 6).double()}, r"x: expected dense float32 of shape \[..., 6\] .* got torch.float64"),
        ({"x": torch.ones(2, 5)}, r"for a weight of shape \(4, 6\), got torch.float32 of shape \(2, 5\)"),
        ({"x": torch.tensor(1.0)}, r"shape \(\)"),
        ({"x": torch.ones(2, 6, device="meta")}, "on meta"),
        ({"x": torch.ones(2, 6).to_sparse()}, "expected dense"),
        ({"x": torch.ones(2, 6, requires_grad=True)}, "requires gradients.* torch.no_grad"),
        ({"bias": torch.ones(3)}, r"bias: expected float32 of shape \(4,\)"),
        ({"bias": torch.ones(4).double()}, "bias: .* got torch.float64"),
        ({"bias": torch.ones(4, device="meta")}, "bias: .* on meta"),
        (
            {"activation": "tanh"},
            "activation 'tanh': allowed are None, relu, gelu, gelu_tanh, silu, relu6, hardswish, leaky_relu_0.1, "
            "leaky_relu_0.01",
        ),
    ],
)
def test_wrong_arguments(either: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear(**({"x": torch.ones(2, 6), "weight": pack(torch.ones(4, 6))} | arguments))


@pytest.mark.skipif(core is None, reason="the C++ core is absent")
def test_the_core_keeps_the_memory_that_it_reads() -> None:
    packed = pack(torch.randn(300, 300))
    handle, streams = packed.native, [weakref.ref(stream) for stream in packed._streams.values()]
    del packed
    gc.collect()
    assert all(stream() is not None for stream in streams)
    del handle
    gc.collect()
    assert all(stream() is None for stream in streams)


def test_callers_in_many_threads(either: str) -> None:
    weights = [torch.randn(300 + 16 * i, 400 + 32 * i) for i in range(4)]
    packed = [pack(weight) for weight in weights]
    inputs = [torch.randn(64, weight.shape[1]) for weight in weights]
    wanted = [linear(x, p) for x, p in zip(inputs, packed, strict=True)]
    right: list[bool] = []

    def work(i: int) -> None:
        right.extend(torch.equal(linear(inputs[i], packed[i]), wanted[i]) for _ in range(40))

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1, 2, 3, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 200
