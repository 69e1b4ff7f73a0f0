"""Training with attached masks equals training with masks held by hand, whatever the loop does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from secateur.model.masks import Masks
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

OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], Optimizer]] = {
    "sgd": partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": partial(Adam, lr=0.01, weight_decay=0.1),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw, fused": partial(AdamW, lr=0.01, weight_decay=0.1, fused=True),
}
SGD_WITH_ALL = OPTIMIZERS["sgd"]


def pair(
    make: Callable[[Iterator[nn.Parameter]], Optimizer] = SGD_WITH_ALL, model: nn.Module | None = None
) -> tuple[nn.Module, Masks, Optimizer, Oracle]:
    """A masked model with its attached optimizer, and the oracle that starts from the same weights."""
    model = make_net() if model is None else model
    unit_masks = random_unit_masks(model)
    oracle = Oracle(model, unit_masks, make)
    masks = mask_model(model, unit_masks)
    optimizer = make(model.parameters())
    masks.attach(optimizer)
    return model, masks, optimizer, oracle


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_plain_loop(make: Callable[[Iterator[nn.Parameter]], Optimizer]) -> None:
    model, masks, optimizer, oracle = pair(make)
    start = copy.deepcopy(model)
    for batch in make_batches(5):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        expect_removed(model, oracle.masks)
        masks.check()
        loss_of(oracle.model, batch).backward()
        oracle.step()
    expect_equal(model, oracle.model)
    assert not torch.equal(model[0].weight, start[0].weight), "nothing was trained"


def sgd_by_hand(weight: Tensor, gradient: Tensor, memory: dict[str, Tensor], step: int) -> Tensor:
    gradient = gradient + 0.01 * weight
    memory["v"] = gradient if step == 1 else 0.9 * memory["v"] + gradient
    return weight - 0.1 * memory["v"]


def adamw_by_hand(weight: Tensor, gradient: Tensor, memory: dict[str, Tensor], step: int) -> Tensor:
    memory["m"] = 0.9 * memory.get("m", 0.0) + 0.1 * gradient
    memory["s"] = 0.999 * memory.get("s", 0.0) + 0.001 * gradient**2
    m, s = memory["m"] / (1 - 0.9**step), memory["s"] / (1 - 0.999**step)
    return (1 - 0.01 * 0.1) * weight - 0.01 * m / (s.sqrt() + 1e-3)


@pytest.mark.parametrize(
    ("make", "update"),
    [(SGD_WITH_ALL, sgd_by_hand), (partial(AdamW, lr=0.01, weight_decay=0.1, eps=1e-3), adamw_by_hand)],
    ids=["sgd", "adamw"],
)
def test_formulas_in_float64(make: Any, update: Callable[..., Tensor]) -> None:
    """No torch optimizer on the other side: the update formulas, times the mask."""
    model, masks, optimizer, _ = pair(make, make_net(dtype=torch.float64))
    keep = {name: masks[name].double() if name in masks else 1.0 for name, _ in model.named_parameters()}
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    memory: dict[str, dict[str, Tensor]] = {name: {} for name in weights}
    for step, batch in enumerate(make_batches(4, dtype=torch.float64), start=1):
        live = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        loss = nn.functional.cross_entropy(torch.func.functional_call(copy.deepcopy(model), live, batch[0]), batch[1])
        gradients = dict(zip(live, torch.autograd.grad(loss, list(live.values())), strict=True))
        for name, weight in weights.items():
            weights[name] = update(weight, gradients[name] * keep[name], memory[name], step) * keep[name]
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-11, atol=1e-13)


def test_gradient_accumulation() -> None:
    model, _, optimizer, oracle = pair()
    batches = make_batches(6)
    for first in range(0, 6, 3):
        for batch in batches[first : first + 3]:
            (loss_of(model, batch) / 3).backward()
            (loss_of(oracle.model, batch) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        expect_removed(model, oracle.masks)
        oracle.step()
    expect_equal(model, oracle.model)


def test_gradient_clipping_sees_the_kept_gradients_only() -> None:
    model, masks, optimizer, oracle = pair()
    for batch in make_batches(3):
        loss_of(model, batch).backward()
        everything = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        masks.mask_gradients()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        loss_of(oracle.model, batch).backward()
        oracle.hold_gradients()
        squares = sum(float(p.grad.double().square().sum()) for p in oracle.model.parameters())
        assert norm == pytest.approx(squares**0.5, rel=1e-5)
        assert norm < 0.99 * everything, "the removed gradients would have counted"
        nn.utils.clip_grad_norm_(oracle.model.parameters(), 0.1)
        oracle.step()
        expect_removed(model, oracle.masks)
    expect_equal(model, oracle.model)


@pytest.mark.parametrize("name", ["sgd", "adamw, fused"])
def test_amp_with_a_scaler_that_skips_a_step(name: str) -> None:
    """A fused optimizer divides by the scale itself, after the masks were applied to scaled gradients."""
    model, _, optimizer, oracle = pair(OPTIMIZERS[name])
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2) for _ in range(2)]
    for number, batch in enumerate(make_batches(5)):
        before = {name: value.clone() for name, value in model.state_dict().items() if "weight" in name}
        for net, scaler in zip((model, oracle.model), scalers, strict=True):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = net(batch[0])
            scaler.scale(nn.functional.cross_entropy(output.float(), batch[1])).backward()
            if number == 2:
                net[4].weight.grad[tuple(oracle.masks["4.weight"].nonzero()[0])] = float("inf")
        scalers[0].step(optimizer)
        scalers[0].update()
        optimizer.zero_grad()
        expect_removed(model, oracle.masks)
        changed = any(not torch.equal(before[name], model.state_dict()[name]) for name in before)
        assert changed == (number != 2), "an infinite gradient skips the whole step"
        oracle.hold_gradients()
        scalers[1].step(oracle.optimizer)
        scalers[1].update()
        oracle.hold_weights()
        oracle.optimizer.zero_grad()
    assert scalers[0].get_scale() == scalers[1].get_scale()
    expect_equal(model, oracle.model)


def test_moving_average() -> None:
    model, _, optimizer, oracle = pair()
    averaged = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8))
    expected = {name: value.clone() for name, value in oracle.model.named_parameters()}
    for number, batch in enumerate(make_batches(4)):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(model)
        expect_removed(averaged.module, oracle.masks)
        loss_of(oracle.model, batch).backward()
        oracle.step()
        for name, value in oracle.model.named_parameters():
            expected[name] = value.detach().clone() if number == 0 else 0.8 * expected[name] + 0.2 * value.detach()
    for name, value in averaged.module.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)


def test_two_optimizers_over_disjoint_parameters() -> None:
    model = make_net()
    unit_masks = random_unit_masks(model)
    parts = (slice(0, 4), slice(4, 7))
    oracle = Oracle(model, unit_masks, SGD_WITH_ALL)
    masks = mask_model(model, unit_masks)
    optimizers = [SGD_WITH_ALL(model[part].parameters()) for part in parts]
    for optimizer in optimizers:
        masks.attach(optimizer)
    for batch in make_batches(4):
        loss_of(model, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
            expect_removed(model, unit_masks)
            optimizer.zero_grad()
        loss_of(oracle.model, batch).backward()
        oracle.step()
    expect_equal(model, oracle.model)


def test_a_closure_that_makes_new_gradients() -> None:
    """The pre-hook comes too early for them, the post-hook does not."""
    model, _, optimizer, oracle = pair(partial(SGD, lr=0.1))
    for batch in make_batches(3):

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
        expect_removed(model, oracle.masks)
        loss_of(oracle.model, batch).backward()
        oracle.step()
    expect_equal(model, oracle.model)
