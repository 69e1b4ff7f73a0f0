"""Operations and bytes of every layer in `explain`, against counts by hooks on the dense model; roofs on request."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.deploy.pack import packed as packing
from secateur.records import Explanation
from secateur.runtime import roofs as measuring
from tests.deploy.pack_models import sparse
from tests.native.oracle import needs_core

pytestmark = [needs_core, pytest.mark.usefixtures("sparse_wins")]


class Residual(nn.Module):
    """Strides, padding, groups, depthwise, a sum and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.deep = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
        self.wide = nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.grouped(x))
        return self.head(torch.relu(self.wide(self.deep(x))).flatten(1))


def counted(model: nn.Module, x: Tensor) -> dict[str, tuple[int, int, int, int]]:
    """Layer -> (operations on nonzeros, on all weights, floats read, floats written), by running products of ones."""
    found: dict[str, tuple[int, int, int, int]] = {}

    def count(name: str, layer: Any, read: Tensor, written: Tensor) -> None:
        # A layer whose weights are 1 sums as many ones as it has products: in the middle of an image without padding
        # all of them meet a pixel, so every place is given the most of its channel.
        sums: list[int] = []
        for weight in ((layer.weight != 0).double(), torch.ones_like(layer.weight).double()):
            if isinstance(layer, nn.Conv2d):
                products = weight.flatten(1).sum(1)[None, :, None, None].expand(written.shape)
            else:
                products = nn.functional.linear(torch.ones_like(read).double(), weight)
            sums.append(2 * int(products.sum()))
        found[name] = (sums[0], sums[1], read.numel(), written.numel())

    hooks = [
        layer.register_forward_hook(lambda module, args, y, name=name: count(name, module, args[0], y))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("batch", [1, 3])
def test_operations_and_bytes_are_those_of_the_dense_model_run(batch: int) -> None:
    model = sparse(Residual())
    x = torch.randn(batch, 3, 16, 16)
    expected = counted(model, x)
    found = sc.pack(model, x, cache=False).explain()
    assert [line.name for line in found.layers] == list(expected)
    for line in found.layers:
        kept, all_of_them, read, written = expected[line.name]
        residual = written if line.name == "grouped" else 0
        assert (line.flops, line.dense_flops) == (kept, all_of_them), line.name
        assert (line.input_bytes, line.output_bytes) == (4 * (read + residual), 4 * written), line.name
        nonzeros = int(model.get_submodule(line.name).weight.count_nonzero())
        assert 4 * nonzeros < line.weight_bytes < 8 * nonzeros + 4096, line.name
        assert line.gflops == pytest.approx(line.flops / (line.us * 1e-6) / 1e9)
        assert line.intensity == pytest.approx(line.flops / (line.weight_bytes + line.input_bytes + line.output_bytes))
    assert found.samples == batch


def test_rows_of_a_sequence_all_count() -> None:
    model = sparse(nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16)))
    (first, _) = sc.pack(model, torch.randn(2, 5, 32), cache=False).explain().layers
    assert first.flops == 2 * 10 * int(model[0].weight.count_nonzero())
    assert first.input_bytes == 4 * 10 * 32


def test_the_cache_tells_the_same_counts(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    model, x = sparse(Residual()), torch.randn(1, 3, 16, 16)
    first = sc.pack(model, x).explain()
    monkeypatch.setattr("secateur.deploy.pack.region.choose", lambda *args, **options: pytest.fail("measured again"))
    assert sc.pack(model, x).explain() == first


def test_dense_layers_count_their_dense_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runtime.choose.interleaved", lambda calls: [2.0] * (len(calls) - 1) + [1.0])
    found = sc.pack(sparse(Residual()), torch.randn(1, 3, 16, 16), cache=False).explain()
    assert [line.program for line in found.layers] == [None] * 5
    assert found.layers[0].weight_bytes == 4 * 8 * 3 * 9


def test_roofs_only_on_request_and_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_SECONDS", dict.fromkeys(("peak", *measuring._SECONDS), 1e-4))
    monkeypatch.setattr(measuring, "_LARGEST", 1 << 20)
    measuring.measure_roofs.cache_clear()
    fast = sc.pack(sparse(Residual()), torch.randn(1, 3, 16, 16), cache=False)
    with monkeypatch.context() as forbidden:
        forbidden.setattr(packing, "measure_roofs", lambda: pytest.fail("measured unasked"))
        assert fast.explain().roofs is None
    found = fast.explain(roofs=True)
    assert found.roofs is not None
    assert found.title == "Residual"
    assert fast.explain().roofs is None  # what is kept does not change
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert Explanation.from_record(json.loads(text)) == found
    measuring.measure_roofs.cache_clear()


def test_without_layers_or_core_no_roofs_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "measure_roofs", lambda: pytest.fail("measured for nothing"))
    dense = sc.pack(nn.Softmax(1), torch.randn(1, 8))
    assert dense.explain(roofs=True).roofs is None
    fast = sc.pack(sparse(nn.Sequential(nn.Linear(32, 32))), torch.randn(1, 32), cache=False)
    monkeypatch.setattr(packing, "core", None)
    assert fast.explain(roofs=True).no_roofs == "the C++ core is absent, which measures them"


def test_the_table_has_the_operations_in_100_columns() -> None:
    printed = str(sc.pack(sparse(Residual()), torch.randn(1, 3, 16, 16), cache=False).explain())
    heading, first, *_, last = printed.splitlines()
    assert heading.endswith("GFLOP/s")
    assert float(first.split()[-1]) > 0
    assert last == "GFLOP/s: on weights that are not 0"
    assert max(map(len, printed.splitlines())) <= 100
