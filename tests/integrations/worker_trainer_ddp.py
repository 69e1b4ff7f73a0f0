"""What each of two processes does: trainers under DDP, stopped and resumed, and pruned by what both ranks read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from secateur.integrations.lightning import SecateurCallback as LightningCallback
from secateur.integrations.trainer import SecateurCallback
from secateur.train.plan import Plan
from tests.integrations.training import fit
from tests.masks.gloo import WORLD, expect_same_everywhere, weights_of
from tests.masks.nets import expect_equal, loss_of, make_batches, make_net
from tests.masks.trainers import make_bert, make_loader, make_sentences, quiet

__all__ = ["lightning_reads_all_ranks", "prunes_and_resumes", "trainer_reads_all_ranks"]

PLAN = Plan(sparsity=0.75, criterion="taylor", schedule="linear", begin=1, end=3)


def prunes_and_resumes(rank: int, folder: Path) -> None:
    """The same masks on both ranks, held by a step whose gradients were averaged; files are written once."""
    _launched(rank)
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


def trainer_reads_all_ranks(rank: int, folder: Path) -> None:
    """Batches of the callback, and activations of the training: the masks are those of both ranks' together."""
    _launched(rank)
    with quiet(folder):
        rows = make_sentences(24)
        batches = [{key: torch.stack([row[key] for row in rows[at::3]]) for key in rows[0]} for at in range(3)]
        plan = Plan(sparsity=0.5, criterion="wanda")
        call: dict[str, Any] = {"criterion": "wanda", "batches": 9}
        model, callback = make_bert(), SecateurCallback(plan, data=_own(rank, batches), batches=9)
        fit(model, callback, max_steps=2, ddp_backend="gloo")
        _expect_masks(callback.masks, sc.prune(make_bert(), 0.5, data=batches, **call))
        alone = sc.prune(make_bert(), 0.5, data=_own(0, batches), **call)
        assert any(not torch.equal(alone[name], mask) for name, mask in dict(callback.masks or {}).items())
        watching = SecateurCallback(Plan(sparsity=0.5, criterion="wanda", schedule="linear", begin=2, end=3))
        fit(make_bert(), watching, max_steps=4, ddp_backend="gloo")
        expect_same_everywhere(dict(watching.masks or {}))


def lightning_reads_all_ranks(rank: int, folder: Path) -> None:
    """The part of a LightningModule that is pruned is no module of DDP; its masks are those of both ranks' batches."""
    _launched(rank)
    with quiet(folder):
        batches = make_batches(3)
        call: dict[str, Any] = {"criterion": "wanda", "batches": 9}
        for part in ("net", None):
            plan = Plan(sparsity=0.5, criterion="wanda", targets="*.weight")
            callback = LightningCallback(plan, module=part, data=[x for x, _ in _own(rank, batches)], batches=9)
            module = _fit_lightning(callback)
            expect_same_everywhere(weights_of(module))
            expected = sc.prune(make_net(), 0.5, data=[x for x, _ in batches], **call)
            _expect_masks(callback.masks, expected, "" if part else "net.")
        watching = LightningCallback(Plan(sparsity=0.5, criterion="wanda", begin=2), module="net")
        _fit_lightning(watching)
        expect_same_everywhere(dict(watching.masks or {}))


def _fit_lightning(callback: LightningCallback) -> nn.Module:
    import pytorch_lightning as lightning
    from pytorch_lightning.strategies import DDPStrategy

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.parameters(), lr=0.01)

    module = Training()
    silent: dict[str, Any] = dict.fromkeys(
        ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False
    )
    trainer = lightning.Trainer(
        accelerator="cpu", devices=WORLD, strategy=DDPStrategy(process_group_backend="gloo"), max_steps=3,
        callbacks=[callback], **silent,
    )  # fmt: skip
    trainer.fit(module, make_loader(make_batches(12)))
    assert trainer.world_size == WORLD, "not distributed"
    return module


def _launched(rank: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}


def _own(rank: int, batches: list[Any]) -> list[Any]:
    """Two of three batches on rank 0, the third, larger in its numbers, on rank 1."""
    return batches[:2] if rank == 0 else batches[2:]


def _expect_masks(found: Any, expected: Any, prefix: str = "") -> None:
    assert found is not None
    expect_same_everywhere(dict(found))
    assert {prefix + name for name in expected} == set(found)
    for name, mask in expected.items():
        assert torch.equal(found[prefix + name], mask), name
