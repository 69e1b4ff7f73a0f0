"""`sc.pack` as a user meets it: the same answers, regions where they belong, dense where nothing wins, refusals."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.deploy.pack import packed as packing
from secateur.deploy.pack.region import size_class
from tests.deploy.pack_models import Attention, Branches, Crossing, Normed, agree, lenet, sparse
from tests.native.oracle import needs_core

pytestmark = [needs_core, pytest.mark.usefixtures("sparse_wins")]


@pytest.mark.parametrize(
    ("model", "shape", "programs"),
    [
        (lenet, (1, 12, 12), 1),
        (Branches, (24,), 2),
        (Crossing, (16,), 2),
        (Normed, (3, 24), 1),
        (Attention, (5, 32), 3),
    ],
)
def test_the_same_answers_for_any_number_of_samples(model: Any, shape: tuple[int, ...], programs: int) -> None:
    dense = sparse(model())
    fast = sc.pack(dense, torch.randn(1, *shape))
    assert len(fast.regions) == programs
    assert not fast.is_dense
    for samples in (1, 2, 3, 9, 40, 70):
        x = torch.randn(samples, *shape)
        with torch.no_grad():
            assert agree(fast(x), dense(x)), samples


def test_one_region_without_torch_is_called_directly() -> None:
    fast = sc.pack(lenet(), torch.randn(2, 1, 12, 12))
    assert fast._parts.run is fast.regions[0]
    assert [node.kind for node in fast.regions[0].graph.nodes] == ["flatten", "linear", "linear", "linear"]
    assert [node.activation for node in fast.regions[0].graph.nodes] == [None, "relu", "gelu", None]


def test_a_sum_becomes_a_residual_and_a_crossing_path_stays_out() -> None:
    first = sc.pack(sparse(Branches()), torch.randn(2, 24)).regions[0].graph
    assert [(n.name, n.residual, n.activation) for n in first.nodes] == [("a", False, "silu"), ("b", True, None)]
    second = sc.pack(sparse(Crossing()), torch.randn(2, 16)).regions
    assert [[n.kind for n in region.graph.nodes] for region in second] == [["linear"], ["add", "linear"]]


def test_keywords_and_constants_of_a_call() -> None:
    model = sparse(Branches())
    fast = sc.pack(model, {"x": torch.randn(4, 24)})
    x = torch.randn(6, 24)
    with torch.no_grad():
        assert agree(fast(x=x), model(x=x))


def test_a_value_that_is_fused_nowhere_else() -> None:
    """`linear` is read by an activation and by a sum: the activation must not be fused into it."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(20, 20)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return F.relu(y) + F.dropout(y, training=False)

    model = sparse(Twice(), 0.5)
    x = torch.randn(7, 20)
    with torch.no_grad():
        assert agree(sc.pack(model, x)(x), model(x))


def test_explain_names_every_layer() -> None:
    fast = sc.pack(lenet(), torch.randn(1, 1, 12, 12))
    found = fast.explain()
    assert [line.name for line in found.layers] == ["1", "4", "6"]
    assert all(0.8 < line.sparsity < 1 and line.pattern == "unstructured" and line.us > 0 for line in found.layers)
    assert found.programs_us == pytest.approx(sum(line.us for line in found.layers) + found.other_us)
    assert "whole model" in str(found)
    assert "no gain" not in str(found)
    assert found.to_dict()["layers"][0]["name"] == "1"


def test_a_model_without_layers_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Softmax(1), nn.ReLU()).eval()
    fast = sc.pack(model, torch.randn(1, 8))
    assert fast.is_dense
    assert str(fast.explain()) == "no gain: stay dense; it has no layer that the runtime knows"
    x = torch.randn(3, 8)
    assert torch.equal(fast(x), model(x))


def test_a_dense_model_may_become_a_program() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    fast = sc.pack(model, torch.randn(2, 8))
    assert len(fast.regions) == 1
    assert [line.pattern for line in fast.explain().layers] == ["dense", "dense"]
    x = torch.randn(5, 8)
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-6)


def test_what_is_slower_than_torch_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "interleaved", lambda calls, seconds: [2.0, 1.0])
    model = lenet()
    fast = sc.pack(model, torch.randn(1, 1, 12, 12))
    assert fast.is_dense
    assert fast._parts.run is model
    assert "no gain: stay dense; the packed model was not faster than torch here" in str(fast.explain())


def test_a_program_that_loses_runs_dense_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runtime.choose.interleaved", lambda calls: [*[2.0] * (len(calls) - 1), 1.0])
    model = lenet()
    fast = sc.pack(model, torch.randn(1, 1, 12, 12))
    assert {line.layout for line in fast.explain().layers} == {"torch"}
    x = torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = lenet().train()
    before = copy.deepcopy(model.state_dict())
    fast = sc.pack(model, torch.randn(1, 1, 12, 12))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    x = torch.randn(2, 1, 12, 12)
    wanted = fast(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(fast(x), wanted)


@pytest.mark.parametrize(("model", "shape"), [(lenet, (1, 12, 12)), (Branches, (24,))])
def test_copies_and_pickles_keep_the_choice(model: Any, shape: tuple[int, ...]) -> None:
    fast = sc.pack(sparse(model()), torch.randn(1, *shape))
    x = torch.randn(1, *shape)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert agree(again(x), fast(x))
        assert again.regions[0].chosen[1].layouts == fast.regions[0].chosen[1].layouts
        assert again.regions[0] is not fast.regions[0]


def test_callers_in_many_threads_meet_a_new_size_together() -> None:
    model = lenet()
    fast = sc.pack(model, torch.randn(1, 1, 12, 12))
    inputs = [torch.randn(n, 1, 12, 12) for n in (1, 5, 20, 20, 70)]
    with torch.no_grad():
        wanted = [model(x) for x in inputs]
    right: list[bool] = []

    def work(i: int) -> None:
        right.extend(agree(fast(inputs[i]), wanted[i]) for _ in range(20))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f: f(torch.randn(2, 1, 12, 11)),
            r"expected dense float32 of shape \[\*, 1, 12, 12\].* got .*2, 1, 12, 11",
        ),
        (lambda f: f(torch.randn(2, 1, 12, 12).double()), "got torch.float64"),
        (lambda f: f(torch.randn(2, 1, 12, 12, device="meta")), "on meta"),
        (lambda f: f.train(), "is for inference"),
        (lambda f: f.double(), "stays float32 on the CPU"),
    ],
)
def test_wrong_use(call: Any, message: str) -> None:
    fast = sc.pack(lenet(), torch.randn(1, 1, 12, 12))
    with pytest.raises(ValueError, match=message):
        call(fast)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "threads=0: expected 1 or more"),
        ({"dtype": torch.float16}, "allowed are torch.float32, torch.bfloat16"),
        ({"example_inputs": 3}, "expected a tensor, a tuple of arguments or a mapping"),
        ({"model": nn.Linear(3, 3).double()}, "expects float32 weights on the CPU, got torch.float64 on cpu"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sc.pack(**({"model": nn.Linear(3, 3), "example_inputs": torch.randn(1, 3)} | arguments))


def test_a_model_that_cannot_be_exported() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if bool(x.sum() > 0) else x

    with pytest.raises(ValueError, match=r"torch.export cannot follow Branching: .*; pack the parts"):
        sc.pack(Branching(), torch.randn(1, 3))


def test_weights_that_grew_back_are_refused() -> None:
    model = nn.Linear(30, 30).eval()
    sc.prune(model, 0.9)
    model.weight.data.add_(1.0)
    with pytest.raises(ValueError, match="no longer zero"):
        sc.pack(model, torch.randn(1, 30))


def test_without_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "core", None)
    assert "the C++ core is absent" in str(sc.pack(lenet(), torch.randn(1, 1, 12, 12)).explain())


def test_size_classes_cover_every_number() -> None:
    assert [size_class(n) for n in range(10)] == [1, 1, 2, 4, 4, 8, 8, 8, 8, 16]
    fast = sc.pack(lenet(), torch.randn(1, 1, 12, 12))
    assert fast(torch.randn(0, 1, 12, 12)).shape == (0, 10)
