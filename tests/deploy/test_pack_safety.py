"""Packed models in the hands of others: forked workers, threads, compilers, exporters, copies; and wrong inputs."""

from __future__ import annotations

import copy
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import secateur as sc
from secateur.deploy.pack import packed as packing
from tests.native.oracle import needs_core

pytestmark = needs_core


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 192), nn.ReLU(), nn.Linear(192, 10)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data[torch.rand_like(parameter) < 0.9] = 0.0
    return model


class Mixed(nn.Module):
    """Torch between two programs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = net(), nn.Linear(10, 4)
        self.b.weight.data[0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.softmax(self.a(x), 1))


@pytest.fixture(autouse=True)
def sparse_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs win, on two threads where they may have them."""
    monkeypatch.setattr("secateur.runtime.choose._ROUNDS", 1)
    monkeypatch.setattr("secateur.runtime.choose._TRIES", 1)

    def interleaved(calls: list[Any]) -> list[float]:
        return [3.0, 1.0, 2.0, 9.0] if len(calls) == 4 else [1.0, *[2.0] * (len(calls) - 1)]

    monkeypatch.setattr("secateur.runtime.choose.interleaved", interleaved)
    monkeypatch.setattr(packing, "interleaved", lambda calls, seconds: [1.0, 2.0])


class Features(Dataset[Tensor]):
    """What a packed model makes of a sample, computed in the worker."""

    def __init__(self, fast: nn.Module, inputs: Tensor) -> None:
        self.fast, self.inputs = fast, inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, place: int) -> Tensor:
        return self.fast(self.inputs[place : place + 1])[0].clone()


@pytest.mark.parametrize("threads", [1, 2])
def test_forked_workers_call_a_model_of_their_parent(threads: int) -> None:
    model = net()
    fast = sc.pack(model, torch.randn(1, 96), threads=threads)
    assert fast.regions[0].chosen[1].backend == ("one" if threads == 1 else "own")
    inputs = torch.randn(12, 96)
    fast(inputs[:1])  # threads of the parent have run
    loader = DataLoader(Features(fast, inputs), batch_size=3, num_workers=2, multiprocessing_context="fork", timeout=60)
    found = torch.cat(list(loader))
    with torch.no_grad():
        assert torch.allclose(found, model(inputs), atol=1e-5)
    assert torch.equal(fast(inputs[:1]), fast(inputs[:1]))  # and the parent's still do


def measure_there(fast: sc.PackedModel, inputs: Tensor, path: str) -> None:
    torch.save(fast(inputs), path)


def test_a_worker_that_meets_a_new_size_decides_for_itself(tmp_path: Path) -> None:
    model, inputs = net(), torch.randn(40, 96)
    fast = sc.pack(model, torch.randn(1, 96), threads=2)
    worker = multiprocessing.get_context("fork").Process(
        target=measure_there, args=(fast, inputs, str(tmp_path / "y")), daemon=True
    )
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert set(fast.regions[0].chosen) == {1}
    with torch.no_grad():
        assert torch.allclose(torch.load(tmp_path / "y"), model(inputs), atol=1e-5)


def test_many_threads_at_once() -> None:
    model = net()
    fast = sc.pack(model, torch.randn(1, 96), threads=2)
    inputs = [torch.randn(n, 96) for n in (1, 1, 7, 33)]
    with torch.no_grad():
        wanted = [model(x) for x in inputs]
    wrong: list[int] = []

    def work(place: int) -> None:
        for _ in range(30):
            if not torch.allclose(fast(inputs[place]), wanted[place], atol=1e-5):
                wrong.append(place)

    crowd = [threading.Thread(target=work, args=(i % 4,)) for i in range(8)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert wrong == []
    assert set(fast.regions[0].chosen) == {1, 8, 64}


@pytest.mark.parametrize("make", [net, Mixed])
def test_compilers_break_around_a_packed_model(make: Any) -> None:
    model = make().eval()
    fast = sc.pack(model, torch.randn(2, 96))
    compiled = torch.compile(lambda x: fast(2 * x) + 1, backend="eager")
    x = torch.randn(2, 96)
    with torch.no_grad():
        assert torch.allclose(compiled(x), model(2 * x) + 1, atol=1e-5)
        assert torch.allclose(torch.compile(fast, backend="eager")(x), model(x), atol=1e-5)
    assert not compiled(x).requires_grad
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(lambda x: fast(x) + 1, backend="eager", fullgraph=True)(x)


class Holder(nn.Module):
    def __init__(self, fast: nn.Module) -> None:
        super().__init__()
        self.fast = fast

    def forward(self, x: Tensor) -> Tensor:
        return self.fast(x) + 1


@pytest.mark.parametrize("make", [net, Mixed])
def test_exporters_are_told_what_to_export(make: Any) -> None:
    fast = sc.pack(make().eval(), torch.randn(2, 96))
    with pytest.raises(ValueError, match=r"torch\.export cannot take a packed model.*Export the model that it came"):
        torch.export.export(Holder(fast).eval(), (torch.randn(2, 96),), strict=False)
    with pytest.raises(Exception, match=r"torch\.export cannot take a packed model|disable"):
        torch.export.export(Holder(fast).eval(), (torch.randn(2, 96),), strict=True)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model, x: torch.export.export(model, (x,)),
        lambda model, x: torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module(),
        lambda model, x: torch.compile(model),
        lambda model, x: nn.DataParallel(model),
    ],
    ids=["exported", "module of exported", "compiled", "data-parallel"],
)
def test_models_in_other_forms_are_packed(wrap: Any) -> None:
    model, x = net(), torch.randn(4, 96)
    fast = sc.pack(wrap(model, x), x)
    more = torch.randn(9, 96)
    with torch.no_grad():
        assert torch.allclose(fast(more), model(more), atol=1e-5)
    assert len(fast.regions) == 1
    assert not fast.is_dense


def test_a_module_that_holds_a_packed_model_is_one() -> None:
    model = net()
    fast = sc.pack(model, torch.randn(2, 96))
    holder, x = Holder(fast), torch.randn(2, 96)
    assert list(holder.parameters()) == []
    assert holder.state_dict() == {}
    again = copy.deepcopy(holder.eval())
    assert torch.equal(again(x), holder(x))
    assert again.fast is not fast
    assert again.fast.regions[0].chosen[2].layouts == fast.regions[0].chosen[2].layouts
    with pytest.raises(ValueError, match="is for inference"):
        holder.train()


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(2, 95), r"input '\w+' .* \[\*, 96\] .* got torch.float32 of shape \(2, 95\)"),
        (torch.zeros(96), r"input '\w+' .* got torch.float32 of shape \(96,\)"),
        (torch.zeros(()), r"input '\w+' "),
        (torch.zeros(2, 96, dtype=torch.float64), r"input '\w+' .* got torch.float64"),
        (torch.zeros(2, 96, dtype=torch.int64), r"input '\w+' .* got torch.int64"),
        (torch.zeros(2, 96, device="meta"), r"input '\w+' .* on meta"),
        (torch.zeros(2, 96).to_sparse(), r"input '\w+' "),
        (torch.zeros(2, 96, requires_grad=True), r"input '\w+' requires gradients"),
        ([[0.0] * 96], r"expected tensors for \w+, got list"),
        (None, r"expected tensors for \w+, got NoneType"),
    ],
)
def test_wrong_inputs_are_named(x: Any, says: str) -> None:
    fast = sc.pack(net(), torch.randn(2, 96))
    with pytest.raises(ValueError, match=says):
        fast(x)


def test_inputs_in_any_memory() -> None:
    model, x = net(), torch.randn(6, 96)
    fast = sc.pack(model, x)
    with torch.no_grad():
        wanted = model(x)
    strided = torch.randn(6, 2, 96)
    strided[:, 1] = x
    flat = torch.randn(6 * 96 + 1)
    flat[1:] = x.reshape(-1)
    for same in (x.t().contiguous().t(), strided[:, 1], flat[1:].view(6, 96), nn.Parameter(x, requires_grad=False)):
        assert torch.allclose(fast(same), wanted, atol=1e-5)


def test_another_default_dtype_changes_nothing() -> None:
    model, x = net(), torch.randn(70, 96)
    with torch.no_grad():
        wanted = model(x)
    torch.set_default_dtype(torch.float64)
    try:
        fast = sc.pack(model, x)
        found = [fast(x), fast(x[:1])]
    finally:
        torch.set_default_dtype(torch.float32)
    for y, rows in zip(found, (wanted, wanted[:1]), strict=True):
        assert y.dtype == torch.float32
        assert torch.allclose(y, rows, atol=1e-5)


class Outputs(nn.Module):
    """One result, in whatever the model puts it."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


@pytest.mark.parametrize("wrap", [lambda y: (y,), lambda y: [y], lambda y: {"out": y}, lambda y: y])
def test_results_come_in_what_the_model_puts_them(wrap: Any) -> None:
    model, x = Outputs(wrap).eval(), torch.randn(2, 96)
    with torch.no_grad():
        found, wanted = sc.pack(model, x)(x), model(x)
    assert type(found) is type(wanted)
    assert torch.allclose(torch.stack([*_tensors(found)]), torch.stack([*_tensors(wanted)]), atol=1e-5)


def _tensors(value: Any) -> list[Tensor]:
    return list(value.values()) if isinstance(value, dict) else [*value] if isinstance(value, list | tuple) else [value]


class InPlace(nn.Module):
    """Writes into what others read: only torch's own analysis gets this right."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = net(), kind
        self.norm = nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        match self.kind:
            case "alone":
                return torch.relu_(self.norm(y)).add_(x[:, :10])
            case "read before":
                return y * 2 + torch.relu_(y)
            case "a view":
                torch.relu_(y[:, 3:])
                return y + 1
            case "a slice is set":
                y[:, 2] = 5.0
                return y
            case _:
                return nn.functional.dropout(y, 0.5, training=True)


@pytest.mark.parametrize("kind", ["alone", "read before", "a view", "a slice is set"])
def test_models_that_write_in_place(kind: str) -> None:
    model, x = InPlace(kind).eval(), torch.randn(4, 96)
    fast = sc.pack(model, x)
    assert len(fast.regions) >= 1
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-5)


def test_dropout_that_is_never_off_still_draws() -> None:
    fast = sc.pack(InPlace("dropout").eval(), torch.randn(64, 96))
    assert 0.3 < float((fast(torch.randn(64, 96)) == 0).float().mean()) < 0.7
