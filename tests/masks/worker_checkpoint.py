"""What each of two FSDP2 processes does with distributed checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.optim import AdamW

from secateur.model.masks import Masks
from secateur.train.prune import prune
from tests.masks.gloo import expect_close, expect_zeros, loss_of, make_data, make_uneven, share, weights_of
from tests.masks.worker_fsdp import sharded

ADAMW = partial(AdamW, lr=0.01, weight_decay=0.1)


def work(rank: int, folder: Path) -> None:
    resume(rank, folder)
    load_a_dense_checkpoint(rank)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, masks: Masks, rank: int, first: int, last: int) -> None:
    for batch in make_data(last)[first:]:
        loss_of(model, share(batch, rank)).backward()
        optimizer.step()
        optimizer.zero_grad()
        expect_zeros(model, masks)


def resume(rank: int, folder: Path) -> None:
    model = sharded()
    masks = prune(model, 0.5)
    optimizer = ADAMW(model.parameters())
    masks.attach(optimizer)
    train(model, optimizer, masks, rank, 0, 3)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    assert set(state["model"]) == set(make_uneven().state_dict())
    dcp.save(state, checkpoint_id=folder / "checkpoint")
    torch.save(masks.state_dict(), folder / f"masks{rank}.pt")
    train(model, optimizer, masks, rank, 3, 6)

    again = sharded(seed=9)
    theirs = prune(again, 0.3)
    resumed = ADAMW(again.parameters())
    theirs.attach(resumed)
    state = dict(zip(("model", "optimizer"), get_state_dict(again, resumed), strict=True))
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    set_state_dict(again, resumed, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    theirs.load_state_dict(torch.load(folder / f"masks{rank}.pt", weights_only=True))
    expect_zeros(again, theirs)
    assert all(torch.equal(theirs[name], masks[name]) for name in masks)
    train(again, resumed, theirs, rank, 3, 6)
    for pair in ((masks, theirs), (theirs, masks)):
        assert pair[0].shares() == pair[1].shares()
    found, expected = weights_of(again), weights_of(model)
    assert all(torch.equal(found[name], expected[name]) for name in expected), "resumes bit by bit"
    masks.undo()
    theirs.undo()
    found, expected = weights_of(again), weights_of(model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def load_a_dense_checkpoint(rank: int) -> None:
    """The load hook masks shards, too, and undo gives what was loaded."""
    model = sharded()
    masks = prune(model, 0.5)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, make_uneven(4).state_dict() if rank == 0 else {}, options=options)
    expect_zeros(model, masks)
    masks.undo()
    expect_close(model, make_uneven(4))
