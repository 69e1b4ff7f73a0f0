"""Compiled and exported models: weights are plain, so nothing is recompiled and nothing is left to fold away."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD

from secateur.model.masks import find_masks
from tests.masks.nets import (
    Oracle,
    expect_equal,
    expect_removed,
    loss_of,
    make_batches,
    make_net,
    mask_model,
    random_unit_masks,
)

MOMENTUM = partial(SGD, lr=0.1, momentum=0.9)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_masks_change_without_recompiling(backend: str) -> None:
    """Prune, train, prune further, undo: one graph for all of it."""
    model = make_net()
    sparse, sparser = random_unit_masks(model, density=0.6), random_unit_masks(model, density=0.3, seed=4)
    oracle = Oracle(model, {}, MOMENTUM)
    compiled = torch.compile(model, backend=backend)
    frames = torch._dynamo.utils.counters["stats"]
    batches = iter(make_batches(8))
    optimizer = MOMENTUM(compiled.parameters())

    def train(masks: dict[str, torch.Tensor], steps: int) -> None:
        oracle.masks = masks
        oracle.hold_weights()
        for _ in range(steps):
            batch = next(batches)
            loss_of(compiled, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            loss_of(oracle.model, batch).backward()
            oracle.step()

    train({}, 1)
    graphs = frames["unique_graphs"]
    assert graphs == 1
    with torch._dynamo.config.patch(error_on_recompile=True):
        masks = mask_model(model, sparse)
        assert find_masks(compiled) is masks
        for momentum in optimizer.state.values():
            momentum["momentum_buffer"].zero_()
        for momentum in oracle.optimizer.state.values():
            momentum["momentum_buffer"].zero_()
        masks.attach(optimizer)
        train(sparse, 3)
        expect_removed(compiled, sparse)
        both = {name: sparse[name] & sparser[name] for name in sparse}
        masks.update(both)
        for name, parameter in oracle.model.named_parameters():
            if name in both:
                oracle.optimizer.state[parameter]["momentum_buffer"][sparse[name] ^ both[name]] = 0
        train(both, 2)
        expect_removed(compiled, both)
        expect_equal(model, oracle.model)
        masks.undo()
        train({}, 1)
    assert frames["unique_graphs"] == graphs


def test_a_compiled_model_can_be_masked_through_its_wrapper() -> None:
    model = make_net()
    unit_masks = random_unit_masks(model)
    compiled = torch.compile(model, backend="eager")
    masks = mask_model(compiled, unit_masks)
    assert list(masks) == list(unit_masks), "names are those of the model, without _orig_mod"
    expect_removed(model, unit_masks)
    assert find_masks(model) is masks


def test_export_has_plain_weights_with_zeros() -> None:
    model = make_net().eval()
    unit_masks = random_unit_masks(model)
    mask_model(model, unit_masks)
    images = make_batches(1)[0][0]
    exported = torch.export.export(model, (images,))
    assert set(exported.state_dict) == set(model.state_dict())
    for name, mask in unit_masks.items():
        assert torch.count_nonzero(exported.state_dict[name][~mask]) == 0
        assert torch.equal(exported.state_dict[name], model.get_parameter(name))
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert not [target for target in targets if "mul" in target or "where" in target or "mask" in target]
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(exported.module()(images), expected)
        buffer = io.BytesIO()
        torch.export.save(exported, buffer)
        assert b"secateur" not in buffer.getvalue()
        buffer.seek(0)
        assert torch.equal(torch.export.load(buffer).module()(images), expected)


def test_functional_calls_see_the_masked_weights() -> None:
    model = make_net().eval()
    mask_model(model, random_unit_masks(model))
    images = make_batches(1)[0][0]
    with torch.no_grad():
        state = {name: value.clone() for name, value in model.state_dict().items()}
        assert torch.equal(torch.func.functional_call(make_net(3).eval(), state, images), model(images))
        vectorised = torch.vmap(lambda image: model(image[None])[0])(images)
    torch.testing.assert_close(vectorised, model(images).detach())
    assert isinstance(model[4].weight, nn.Parameter)
