"""What each of two processes does: the Trainer under DDP, stopped and resumed."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from secateur.integrations.trainer import SecateurCallback
from secateur.train.plan import Plan
from tests.integrations.training import fit
from tests.masks.gloo import WORLD, expect_same_everywhere, weights_of
from tests.masks.nets import expect_equal
from tests.masks.trainers import make_bert, quiet

__all__ = ["prunes_and_resumes"]

PLAN = Plan(sparsity=0.75, criterion="taylor", schedule="linear", begin=1, end=3)


def prunes_and_resumes(rank: int, folder: Path) -> None:
    """The same masks on both ranks, held by a step whose gradients were averaged; files are written once."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}
    with quiet(folder):
        saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "ddp_backend": "gloo"}
        model, callback = make_bert(), SecateurCallback(PLAN)
        trainer = fit(model, callback, **saving)
        assert trainer.args.world_size == WORLD, "not distributed"
        assert callback.masks is not None
        callback.masks.check()
        expect_same_everywhere(weights_of(model))
        expect_same_everywhere(dict(callback.masks))
        again, resumed = make_bert(), SecateurCallback(PLAN)
        fit(again, resumed, "out/checkpoint-2", **saving)
        expect_equal(again, model)
        assert resumed.masks is not None
        assert all(torch.equal(resumed.masks[name], callback.masks[name]) for name in callback.masks)
