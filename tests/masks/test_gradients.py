"""Gradients that are absent, infinite or of another type, and what optimizers remember of removed weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from secateur.model.masks import Masks
from secateur.train.plan import Plan
from secateur.train.pruner import Pruner
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

MOMENTUM = partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01)


def attached(model: nn.Module) -> tuple[Masks, torch.optim.Optimizer, Oracle]:
    unit_masks = random_unit_masks(model)
    oracle = Oracle(model, unit_masks, MOMENTUM)
    masks = mask_model(model, unit_masks)
    optimizer = MOMENTUM(model.parameters())
    masks.attach(optimizer)
    return masks, optimizer, oracle


def test_some_gradients_are_none_and_some_parameters_frozen() -> None:
    """Another subset each step: what is skipped keeps its zeros, what is there is masked."""
    model = make_net()
    model[6].weight.requires_grad_(False)
    _, optimizer, oracle = attached(model)
    for number, batch in enumerate(make_batches(6)):
        for net in (model, oracle.model):
            loss_of(net, batch).backward()
            if number % 3 == 0:
                net[0].weight.grad = None
            if number % 3 == 1:
                net[4].weight.grad = None
        optimizer.step()
        expect_removed(model, oracle.masks)
        if number % 3 != 1:
            assert torch.count_nonzero(model[4].weight.grad[~oracle.masks["4.weight"]]) == 0
        optimizer.zero_grad()
        oracle.step()
    expect_equal(model, oracle.model)
    start = torch.where(oracle.masks["6.weight"], make_net()[6].weight, torch.zeros(()))
    assert torch.equal(model[6].weight, start), "the frozen layer is masked and nothing else"


def test_a_step_without_any_gradient_changes_nothing() -> None:
    model = make_net()
    _, optimizer, oracle = attached(model)
    optimizer.step()
    expect_equal(model, oracle.model)


@pytest.mark.parametrize("poison", [float("inf"), float("-inf"), float("nan")])
def test_removed_weights_stay_zero_when_their_gradients_explode(poison: float) -> None:
    """0 * inf is nan: masking selects, it does not multiply."""
    model = make_net()
    masks, optimizer, oracle = attached(model)
    for batch in make_batches(3):
        for net in (model, oracle.model):
            loss_of(net, batch).backward()
        for name, mask in masks.items():
            model.get_parameter(name).grad[~mask] = poison
        optimizer.step()
        optimizer.zero_grad()
        expect_removed(model, oracle.masks)
        oracle.step()
    expect_equal(model, oracle.model)
    for name, mask in masks.items():
        assert torch.count_nonzero(optimizer.state[model.get_parameter(name)]["momentum_buffer"][~mask]) == 0


def test_removed_weights_that_became_infinite_are_zero_again() -> None:
    model = make_net()
    masks, _, _ = attached(model)
    with torch.no_grad():
        model[4].weight[~masks["4.weight"]] = float("nan")
        model[0].weight[~masks["0.weight"]] = float("inf")
    masks.apply()
    expect_removed(model, dict(masks))
    assert bool(torch.isfinite(model[4].weight).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    model = make_net(dtype=dtype)
    _, optimizer, oracle = attached(model)
    for batch in make_batches(3, dtype=dtype):
        for net in (model, oracle.model):
            loss_of(net, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        expect_removed(model, oracle.masks)
        oracle.step()
    expect_equal(model, oracle.model)
    assert model[4].weight.dtype is dtype


def test_two_types_and_channels_last_in_one_model() -> None:
    """One native call takes one type and contiguous memory; the rest must come out the same."""
    model = make_net().to(memory_format=torch.channels_last)
    model[6].to(torch.bfloat16)
    model[5].register_forward_hook(lambda module, args, output: output.to(torch.bfloat16))
    assert not model[0].weight.is_contiguous()
    _, optimizer, oracle = attached(model)
    for images, labels in make_batches(3):
        for net in (model, oracle.model):
            loss_of(net, (images.to(memory_format=torch.channels_last), labels)).backward()
        optimizer.step()
        optimizer.zero_grad()
        expect_removed(model, oracle.masks)
        oracle.step()
    expect_equal(model, oracle.model)
    assert not model[0].weight.is_contiguous(), "the memory format is the user's"


@pytest.mark.parametrize("make", [MOMENTUM, partial(Adam, lr=0.01, amsgrad=True)], ids=["sgd", "adam"])
def test_optimizers_forget_weights_that_leave_or_return(make: partial[torch.optim.Optimizer]) -> None:
    model = make_net()
    old = random_unit_masks(model, density=0.5, seed=1)
    new = random_unit_masks(model, density=0.5, seed=2)
    masks = mask_model(model, old)
    optimizer = make(model.parameters())
    masks.attach(optimizer)
    for batch in make_batches(3):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    before = {name: _memory(optimizer, model.get_parameter(name)) for name in old}
    masks.update(new)
    expect_removed(model, new)
    for name in old:
        changed = old[name] ^ new[name]
        assert bool(changed.any())
        assert bool((~changed & new[name]).any())
        for key, value in _memory(optimizer, model.get_parameter(name)).items():
            assert torch.count_nonzero(value[changed]) == 0, f"{name}: {key} would move weights that left or returned"
            assert torch.equal(value[~changed], before[name][key][~changed])
            assert torch.count_nonzero(value) > 0, "kept weights keep their memory"


def _memory(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    state = optimizer.state[parameter]
    found = {key: value.clone() for key, value in state.items() if value is not None and value.shape == parameter.shape}
    assert found
    return found


def test_the_soft_policy_lets_removed_weights_return_without_momentum() -> None:
    """Soft pruning: removed values compete again at each update; those that return start from rest."""
    model = nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.arange(1.0, 25.0).view(4, 6))
    pruner = Pruner(model, Plan(sparsity=0.5, policy="soft", schedule="linear", initial=0.5, begin=1, end=2))
    optimizer = SGD(model.parameters(), lr=1.0, momentum=0.9)
    pruner.attach(optimizer)

    def step(gradient: torch.Tensor) -> None:
        model.weight.grad = gradient
        optimizer.step()

    step(torch.zeros(4, 6))
    low = torch.arange(24).view(4, 6) < 12
    assert torch.equal(model.weight == 0, low)
    shrink = torch.zeros(4, 6)
    shrink[3] = torch.arange(19.0, 25.0)  # the largest weights fall to zero, so the removed 7 to 12 return
    step(shrink)
    assert model.weight[1].tolist() == [7.0, 8.0, 9.0, 10.0, 11.0, 12.0]
    assert torch.count_nonzero(model.weight[[0, 3]]) == 0
    momentum = optimizer.state[model.weight]["momentum_buffer"]
    assert torch.count_nonzero(momentum) == 0, "row 3 left, row 1 returned, the others had no gradient"
    step(torch.zeros(4, 6))
    assert model.weight[1].tolist() == [7.0, 8.0, 9.0, 10.0, 11.0, 12.0]


def test_check_names_what_has_grown_back() -> None:
    model = make_net()
    masks, _, _ = attached(model)
    masks.check()
    with torch.no_grad():
        model[4].weight[~masks["4.weight"]] += 0.5
    count = int((~masks["4.weight"]).sum())
    with pytest.raises(ValueError, match=rf"^{count} removed weights of '4\.weight' are no longer zero"):
        masks.check()
    masks.apply()
    masks.check()


def test_training_without_attaching_is_noticed() -> None:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    optimizer = MOMENTUM(model.parameters())
    loss_of(model, make_batches(1)[0]).backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"masks\.attach"):
        masks.check()
