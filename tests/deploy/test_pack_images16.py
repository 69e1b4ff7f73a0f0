"""Batches of images in packed models: blocks of 16 and what is left over, whoever is faster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.deploy.pack import region
from secateur.deploy.pack.packed import PackedModel
from secateur.runtime.choose import Chosen
from tests.deploy.test_pack_images import resnet, sparse
from tests.native.oracle import needs_core

pytestmark = [needs_core, pytest.mark.usefixtures("sparse_wins")]


@pytest.fixture
def model() -> nn.Module:
    return sparse(resnet())


def timed(monkeypatch: pytest.MonkeyPatch, us: Callable[[int], float]) -> None:
    """Let a choice for n samples have taken so long."""
    real = region.choose

    def choose(*args: Any, **more: Any) -> Chosen:
        chosen = real(*args, **more)
        return replace(chosen, us=us(chosen.samples), dense_us=1e9)

    monkeypatch.setattr(region, "choose", choose)


def packed(model: nn.Module, count: int = 16) -> PackedModel:
    fast = sc.pack(model, torch.randn(count, 3, 32, 32), cache=False)
    assert isinstance(fast, PackedModel)
    return fast


@pytest.mark.parametrize("count", [1, 5, 9, 16, 17, 32, 40])
@pytest.mark.parametrize("alone", [1.0, 1000.0])
def test_any_number_of_images(model: nn.Module, count: int, alone: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than 9 images cost ``alone`` each, others 100 a block."""
    timed(monkeypatch, lambda n: alone * n if n <= 8 else 100.0 * -(-n // 16))
    fast = packed(model)
    x = torch.randn(count, 3, 32, 32)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    chosen = fast.regions[0].chosen
    assert {size: choice.program.lanes for size, choice in chosen.items()} == {
        size: 16 if size >= 16 else 1 for size in chosen
    }


@pytest.mark.parametrize(("alone", "runs"), [(1.0, [32, 8]), (1000.0, [40])])
def test_the_rest_goes_the_faster_way(
    model: nn.Module, alone: float, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, lambda n: alone * n if n <= 8 else 100.0 * -(-n // 16))
    fast, x = packed(model), torch.randn(40, 3, 32, 32)
    fast(x)
    seen: list[int] = []
    for choice in fast.regions[0].chosen.values():
        run = choice.program.run
        spy = lambda inputs, run=run: seen.append(len(inputs[0])) or run(inputs)  # noqa: E731
        object.__setattr__(choice, "program", _Spy(choice.program, spy))
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    assert seen == runs


class _Spy:
    """A program whose runs are counted."""

    def __init__(self, program: Any, run: Callable[..., Any]) -> None:
        self.lanes, self.run, self.run_one = program.lanes, run, program.run_one


def test_a_batch_chosen_before_is_built_again(model: nn.Module, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    x = torch.randn(17, 3, 32, 32)
    first = sc.pack(model, x)
    monkeypatch.setattr(region, "choose", None)
    again = sc.pack(model, x)
    assert isinstance(first, PackedModel)
    assert isinstance(again, PackedModel)
    before, after = (fast.regions[0].chosen[32] for fast in (first, again))
    assert (before.layouts, before.program.lanes) == (after.layouts, after.program.lanes)
    torch.testing.assert_close(again(x), first(x), rtol=0, atol=0)


def test_a_packed_file_has_the_mixture(model: nn.Module, tmp_path: Any) -> None:
    fast, x = packed(model), torch.randn(16, 3, 32, 32)
    sc.save(fast, tmp_path / "images.safetensors", blobs=True)
    again = sc.load(tmp_path / "images.safetensors")
    assert isinstance(again, PackedModel)
    torch.testing.assert_close(again(x), fast(x), rtol=0, atol=0)
