"""Masks and the pruner under Lightning, where the optimizer's step makes its gradients itself, by a closure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from secateur.train.plan import Plan
from secateur.train.pruner import Pruner
from tests.masks.nets import expect_equal, expect_removed, loss_of, make_batches, make_net
from tests.masks.trainers import (
    CLIP,
    PLAN,
    STREAMED,
    by_hand,
    expect_same_pruning,
    half,
    held_by_hand,
    make_loader,
    make_optimizer,
    pruned_plainly,
    quiet,
)

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        # Lightning's own: what it still calls in torch, and advice about the number of workers
        r"`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
        r"The 'train_dataloader' does not have many workers:UserWarning",
    )
]


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path) -> Iterator[None]:
    with quiet(tmp_path):
        yield


def make_lightning(model: nn.Module, attach: Callable[[Optimizer], None], batches: list[tuple[Tensor, Tensor]]) -> Any:
    """A LightningModule around ``model`` that attaches in ``configure_optimizers`` and calls back after every batch."""
    import pytorch_lightning as lightning

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model
            self.after_step: Callable[[], None] = lambda: None
            self.steps = 0
            self.taken: list[tuple[Tensor, Tensor]] = []

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            self.taken.append(batch)
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> Optimizer:
            optimizer = make_optimizer(self.net.parameters())
            attach(optimizer)
            return optimizer

        def on_train_batch_end(self, *_: Any) -> None:
            self.steps = self.trainer.global_step
            self.after_step()

        def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
            return make_loader(batches)

    return Training()


def make_lightning_trainer(place: Path, max_steps: int, **options: Any) -> Any:
    import pytorch_lightning as lightning

    silent = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        enable_checkpointing=False,
        default_root_dir=place,
        **silent,
        **options,
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_holds_masks(tmp_path: Path, accumulate: int) -> None:
    model = make_net()
    masks = half(model)
    start, kept = copy.deepcopy(model), by_hand(masks)
    module = make_lightning(model, masks.attach, make_batches(8))
    module.after_step = lambda: expect_removed(model, kept)
    make_lightning_trainer(tmp_path, 4, accumulate_grad_batches=accumulate, gradient_clip_val=CLIP).fit(module)
    assert module.steps == 4
    expect_equal(model, held_by_hand(start, masks, make_batches(4 * accumulate), accumulate=accumulate))


@pytest.mark.parametrize("plan", [PLAN, STREAMED], ids=["magnitude", "taylor"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_drives_the_pruner_by_optimizer_steps(tmp_path: Path, plan: Plan, accumulate: int) -> None:
    model = make_net()
    start = copy.deepcopy(model)
    pruner = Pruner(model, plan)
    module = make_lightning(model, pruner.attach, make_batches(10))
    clocks: list[tuple[int, int]] = []
    module.after_step = lambda: clocks.append((module.steps, pruner.clock))
    make_lightning_trainer(tmp_path, 5, accumulate_grad_batches=accumulate, gradient_clip_val=CLIP).fit(module)
    assert len(clocks) == 5 * accumulate
    assert all(step == clock for step, clock in clocks)
    pruner.masks.check()
    twin, plain = pruned_plainly(start, plan, make_batches(5 * accumulate), accumulate=accumulate)
    expect_same_pruning(pruner, plain)
    expect_equal(model, twin)


def test_it_clips_kept_gradients_only_where_its_hook_masks_them(tmp_path: Path) -> None:
    model = make_net()
    masks = half(model)
    start = copy.deepcopy(model)
    module = make_lightning(model, masks.attach, make_batches(8))
    module.on_before_optimizer_step = lambda optimizer: masks.mask_gradients()
    make_lightning_trainer(tmp_path, 4, gradient_clip_val=CLIP).fit(module)
    expect_equal(model, held_by_hand(start, masks, make_batches(4), hold_before_clip=True))


def test_it_resumes_under_masks(tmp_path: Path) -> None:
    model = make_net()
    masks = half(model)
    start, kept = copy.deepcopy(model), by_hand(masks)
    module = make_lightning(model, masks.attach, make_batches(2))
    module.after_step = lambda: expect_removed(model, kept)
    first = make_lightning_trainer(tmp_path, 2, gradient_clip_val=CLIP)
    first.fit(module)
    first.save_checkpoint("half.ckpt")
    assert b"secateur" not in Path("half.ckpt").read_bytes(), "the checkpoint is plain"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    make_lightning_trainer(tmp_path, 4, gradient_clip_val=CLIP).fit(module, ckpt_path="half.ckpt")
    assert module.steps == 4
    assert len(module.taken) == 4
    expect_equal(model, held_by_hand(start, masks, module.taken))


def test_it_resumes_a_pruner_in_a_new_process(tmp_path: Path) -> None:
    """The pruner's state travels in the checkpoint, and is loaded when model and optimizer are."""

    taken: list[Any] = []

    def train(steps: int, ckpt_path: str | None) -> tuple[nn.Module, Pruner, Any]:
        model = make_net()
        pruner = Pruner(model, STREAMED)
        module = make_lightning(model, pruner.attach, make_batches(2))
        loaded: dict[str, Any] = {}
        module.on_save_checkpoint = lambda checkpoint: checkpoint.update(pruner=pruner.state_dict())
        module.on_load_checkpoint = lambda checkpoint: loaded.update(checkpoint["pruner"])
        module.on_train_start = lambda: pruner.load_state_dict(loaded) if loaded else None
        trainer = make_lightning_trainer(tmp_path, steps, gradient_clip_val=CLIP)
        trainer.fit(module, ckpt_path=ckpt_path, weights_only=True)
        taken.extend(module.taken)
        return model, pruner, trainer

    train(2, None)[2].save_checkpoint("pruner.ckpt")
    model, pruner, _ = train(5, "pruner.ckpt")
    twin, plain = pruned_plainly(make_net(), STREAMED, taken)
    expect_same_pruning(pruner, plain)
    expect_equal(model, twin)
    pruner.masks.undo()
    plain.masks.undo()
    expect_equal(model, twin)
