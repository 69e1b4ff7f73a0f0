"""What each of two DistributedDataParallel processes does."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from secateur.model.masks import find_masks
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


def work(rank: int, folder: Path) -> None:
    prune_wrapped(rank, as_view=False)
    prune_wrapped(rank, as_view=True)
    prune_then_wrap(rank)
    gradual(rank)


def prune_wrapped(rank: int, as_view: bool) -> None:
    """Masks of rank 0 everywhere, although the ranks would choose differently."""
    model = DistributedDataParallel(make_uneven(), gradient_as_bucket_view=as_view)
    masks = prune(model, 0.5, criterion="random", seed=rank)
    expect_same_everywhere(dict(masks))
    assert list(masks) == ["0.weight", "3.weight", "5.weight"]
    assert find_masks(model.module) is masks
    oracle = Oracle(make_uneven(), dict(masks), MOMENTUM)
    optimizer = MOMENTUM(model.parameters())
    masks.attach(optimizer)
    for batch in make_data(4):
        loss_of(model, share(batch, rank)).backward()
        loss_of(oracle.model, batch).backward()
        for name, parameter in oracle.model.named_parameters():
            reduced = model.module.get_parameter(name).grad
            torch.testing.assert_close(reduced, parameter.grad, rtol=1e-11, atol=1e-13)
        optimizer.step()
        for name, mask in masks.items():
            assert torch.count_nonzero(model.module.get_parameter(name).grad[~mask]) == 0
        optimizer.zero_grad()
        oracle.step()
        expect_zeros(model, masks)
        expect_same_everywhere(weights_of(model))
    expect_close(model, oracle.model)
    model.load_state_dict({f"module.{name}": value for name, value in make_uneven(3).state_dict().items()})
    masks.check()
    masks.undo()
    expect_close(model, make_uneven(3))


def prune_then_wrap(rank: int) -> None:
    """With gradient accumulation: gradients are masked once, after the reduction that ends it."""
    plain = make_uneven()
    masks = prune(plain, 0.5)
    model = DistributedDataParallel(plain)
    expect_same_everywhere(dict(masks))
    oracle = Oracle(make_uneven(), dict(masks), MOMENTUM)
    optimizer = MOMENTUM(model.parameters())
    masks.attach(optimizer)
    batches = make_data(6)
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        with model.no_sync():
            loss_of(model, share(first, rank)).backward()
        loss_of(model, share(second, rank)).backward()
        masks.mask_gradients()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        for batch in (first, second):
            loss_of(oracle.model, batch).backward()
        oracle.hold_gradients()
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(oracle.model.parameters(), 0.5))
        oracle.step()
        expect_zeros(model, masks)
    expect_close(model, oracle.model)


def gradual(rank: int) -> None:
    """Masks chosen during training from gradients of different data are the same on both ranks."""
    model = DistributedDataParallel(make_uneven())
    plan = Plan(sparsity=0.7, criterion="snip", schedule="cubic", begin=1, end=5, every=2)
    pruner = Pruner(model, plan, data=[share(batch, rank) for batch in make_data(1)], loss=nn.functional.mse_loss)
    optimizer = MOMENTUM(model.parameters())
    pruner.attach(optimizer)
    for batch in make_data(6):
        loss_of(model, share(batch, rank)).backward()
        optimizer.step()
        optimizer.zero_grad()
        expect_same_everywhere(dict(pruner.masks))
        expect_same_everywhere(weights_of(model))
        pruner.masks.check()
    units = sum(mask.numel() for mask in pruner.masks.values())
    assert sum(map(pruner.masks.kept, pruner.masks)) == units - int(0.7 * units + 0.5)
    assert [point.step for point in pruner.history] == [1, 3, 5]
