"""What each of two FSDP2 processes does: shards of 5, 7 and 1 rows, so one rank holds none of the last."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD

from secateur.model.masked import masked
from secateur.model.masks import Masks
from secateur.train.plan import Plan
from secateur.train.prune import prune
from secateur.train.pruner import Pruner
from tests.masks.gloo import (
    expect_close,
    expect_same_everywhere,
    expect_zeros,
    loss_of,
    make_data,
    make_uneven,
    share,
    weights_of,
)
from tests.masks.nets import Oracle

MOMENTUM = partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01)


def sharded(seed: int = 0) -> nn.Module:
    return shard(make_uneven(seed))


def shard(model: nn.Module) -> nn.Module:
    for layer in (model[3], model[5]):
        fully_shard(layer)
    return fully_shard(model)


def work(rank: int, folder: Path) -> None:
    prune_and_train(rank, shard_before)
    prune_and_train(rank, shard_after)
    prune_and_train(rank, shard_before_and_look_at_it)
    pruning_after_an_evaluation(rank)
    gradual(rank)
    evidence_from_gradients(rank)
    blocks_and_refusals(rank)


def shard_before() -> tuple[nn.Module, Masks]:
    model = sharded()
    return model, prune(model, 0.5)


def shard_after() -> tuple[nn.Module, Masks]:
    model = make_uneven()
    masks = prune(model, 0.5)
    return shard(model), masks


def shard_before_and_look_at_it() -> tuple[nn.Module, Masks]:
    model = sharded()
    with torch.no_grad():
        model(make_data(1)[0][0])
    return model, prune(model, 0.5)


def prune_and_train(rank: int, make: Callable[[], tuple[nn.Module, Masks]]) -> None:
    model, masks = make()
    expect_same_everywhere(dict(masks))
    single = make_uneven()
    expected = prune(single, 0.5)
    assert all(torch.equal(masks[name], expected[name]) for name in expected), "the masks of a single process"
    expect_zeros(model, masks)
    oracle = Oracle(make_uneven(), dict(masks), MOMENTUM)
    optimizer = MOMENTUM(model.parameters())
    masks.attach(optimizer)
    for batch in make_data(4):
        loss_of(model, share(batch, rank)).backward()
        masks.mask_gradients()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5).full_tensor()
        optimizer.step()
        optimizer.zero_grad()
        loss_of(oracle.model, batch).backward()
        oracle.hold_gradients()
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(oracle.model.parameters(), 0.5))
        oracle.step()
        expect_zeros(model, masks)
    expect_close(model, oracle.model)
    trained, dense = weights_of(model), dict(make_uneven().named_parameters())
    masks.undo()
    restored = weights_of(model)
    for name, mask in masks.items():
        assert torch.equal(restored[name][~mask], dense[name][~mask])
        assert torch.equal(restored[name][mask], trained[name][mask])


def pruning_after_an_evaluation(rank: int) -> None:
    """A forward pass alone leaves gathered copies in the modules; zeros written there would be lost."""
    model = sharded()
    masks = prune(model, 0.3)
    first = dict(masks)
    for action in (lambda: prune(model, 0.5), masks.apply, masks.check, lambda: masks.update(first)):
        with torch.no_grad():
            model(make_data(1)[0][0])
        action()
        for name, value in model.state_dict().items():
            if name in masks:
                assert torch.count_nonzero(value.full_tensor()[~masks[name]]) == 0, name
    with torch.no_grad():
        model(make_data(1)[0][0])
    masks.undo()
    expect_close(model, make_uneven())


def gradual(rank: int) -> None:
    model, single = sharded(), make_uneven()
    plan = Plan(sparsity=0.7, schedule="cubic", policy="soft", begin=0, end=4, every=2, initial=0.2)
    pruners = [Pruner(net, plan) for net in (model, single)]
    optimizers = [MOMENTUM(net.parameters()) for net in (model, single)]
    for pruner, optimizer in zip(pruners, optimizers, strict=True):
        pruner.attach(optimizer)
    for batch in make_data(6):
        loss_of(model, share(batch, rank)).backward()
        loss_of(single, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        expect_same_everywhere(dict(pruners[0].masks))
        for name, mask in pruners[0].masks.items():
            assert torch.equal(mask, pruners[1].masks[name])
            momentum = optimizers[0].state[model.get_parameter(name)]["momentum_buffer"].full_tensor()
            assert torch.count_nonzero(momentum[~mask]) == 0
        expect_zeros(model, pruners[0].masks)
    expect_close(model, single)
    assert pruners[0].history == pruners[1].history


def evidence_from_gradients(rank: int) -> None:
    """Each rank sees half of the batch; the gradient is that of the whole one."""
    batch = make_data(1)[0]
    for reshard_after_forward in (True, False):
        model, single = fully_shard(make_uneven(), reshard_after_forward=reshard_after_forward), make_uneven()
        masks = prune(model, 0.5, criterion="snip", data=share(batch, rank), loss=nn.functional.mse_loss)
        expected = prune(single, 0.5, criterion="snip", data=batch, loss=nn.functional.mse_loss)
        expect_same_everywhere(dict(masks))
        assert all(torch.equal(masks[name], expected[name]) for name in expected)
        expect_zeros(model, masks)


def blocks_and_refusals(rank: int) -> None:
    model = make_uneven()
    optimizer = MOMENTUM(model.parameters())
    masks = prune(model, 0.5)
    shard(model)
    with pytest.raises(ValueError, match="fully_shard makes new parameters: build the optimizer after it"):
        masks.attach(optimizer)
    masks.undo()
    with masked(model, {name: masks[name] for name in masks}):
        found = weights_of(model)
        assert all(torch.count_nonzero(found[name][~masks[name]]) == 0 for name in masks)
    expect_close(model, make_uneven())
