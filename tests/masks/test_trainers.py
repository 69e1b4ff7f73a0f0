"""Masks and the pruner where a framework owns the loop: Hugging Face Trainer and accelerate."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.train.plan import Plan
from secateur.train.pruner import Pruner
from tests.masks.nets import expect_equal, expect_removed, loss_of, make_batches, make_net
from tests.masks.trainers import (
    CLIP,
    PLAN,
    STREAMED,
    bert_loss,
    by_hand,
    expect_same_pruning,
    half,
    held_by_hand,
    make_bert,
    make_loader,
    make_optimizer,
    make_sentences,
    pruned_plainly,
    quiet,
)


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path) -> Iterator[None]:
    with quiet(tmp_path):
        yield


# -- Hugging Face Trainer ---------------------------------------------------------------------


def make_trainer(model: nn.Module, optimizer: Optimizer, check: Any, **options: Any) -> tuple[Any, list[Any]]:
    """A Trainer, and the batches that it will have taken."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    taken: list[dict[str, Tensor]] = []

    def collate(examples: list[Any]) -> dict[str, Tensor]:
        taken.append(default_data_collator(examples))
        return dict(taken[-1])

    def mean_loss(output: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
        # the Trainer's own loss for this model is not divided by the number of accumulated batches
        return nn.functional.cross_entropy(output.logits, labels, reduction="sum") / num_items_in_batch

    class AfterEveryStep(TrainerCallback):
        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            check()

    arguments = TrainingArguments(
        output_dir="out",
        use_cpu=True,
        per_device_train_batch_size=4,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP,
        disable_tqdm=True,
        report_to="none",
        logging_strategy="no",
        **{"save_strategy": "no", **options},
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=collate,
        train_dataset=make_sentences(48),
        optimizers=(optimizer, None),
        compute_loss_func=mean_loss,
        callbacks=[AfterEveryStep()],
    )
    return trainer, taken


@pytest.mark.parametrize("accumulate", [1, 2])
def test_trainer_holds_masks(accumulate: int) -> None:
    model = make_bert()
    masks = half(model)
    start, kept = copy.deepcopy(model), by_hand(masks)
    optimizer = make_optimizer(model.parameters())
    masks.attach(optimizer)
    steps: list[None] = []

    def check() -> None:
        expect_removed(model, kept)
        steps.append(None)

    trainer, taken = make_trainer(model, optimizer, check, max_steps=4, gradient_accumulation_steps=accumulate)
    trainer.train()
    assert len(steps) == 4
    plain = held_by_hand(start, masks, taken[: 4 * accumulate], loss=bert_loss, accumulate=accumulate)
    expect_equal(model, plain)
    assert not torch.equal(model.classifier.weight, start.classifier.weight), "nothing was trained"


def test_trainer_clips_kept_gradients_only_where_training_step_masks_them() -> None:
    """Its callbacks come after clipping; ``training_step`` is what one can override."""
    model = make_bert()
    masks = half(model)
    start, optimizer = copy.deepcopy(model), make_optimizer(model.parameters())
    masks.attach(optimizer)
    trainer, taken = make_trainer(model, optimizer, lambda: None, max_steps=4)
    with_gradients = trainer.training_step

    def training_step(*given: Any) -> Tensor:
        loss = with_gradients(*given)
        masks.mask_gradients()
        return loss

    trainer.training_step = training_step
    trainer.train()
    expect_equal(model, held_by_hand(start, masks, taken[:4], loss=bert_loss, hold_before_clip=True))


@pytest.mark.parametrize("plan", [PLAN, STREAMED], ids=["magnitude", "taylor"])
def test_trainer_drives_the_pruner_by_optimizer_steps(plan: Plan) -> None:
    model = make_bert()
    start = copy.deepcopy(model)
    pruner, optimizer = Pruner(model, plan), make_optimizer(model.parameters())
    pruner.attach(optimizer)
    clocks: list[int] = []
    trainer, taken = make_trainer(
        model, optimizer, lambda: clocks.append(pruner.clock), max_steps=5, gradient_accumulation_steps=2
    )
    trainer.train()
    assert clocks == [1, 2, 3, 4, 5]
    assert len(taken) >= 10
    pruner.masks.check()
    twin, plain = pruned_plainly(start, plan, taken[:10], loss=bert_loss, accumulate=2)
    expect_same_pruning(pruner, plain)
    expect_equal(model, twin)


def test_trainer_resumes_under_masks(tmp_path: Path) -> None:
    model = make_bert()
    masks = half(model)
    kept = by_hand(masks)
    optimizer = make_optimizer(model.parameters())
    masks.attach(optimizer)
    trainer, _ = make_trainer(
        model, optimizer, lambda: expect_removed(model, kept), max_steps=4, save_steps=2, save_strategy="steps"
    )
    trainer.train()
    expected = copy.deepcopy(model)

    again = make_bert()
    masks = half(again)
    optimizer = make_optimizer(again.parameters())
    masks.attach(optimizer)
    trainer, _ = make_trainer(again, optimizer, lambda: expect_removed(again, kept), max_steps=4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    expect_equal(again, expected)


def test_a_saved_model_is_plain_and_keeps_its_zeros(tmp_path: Path) -> None:
    model = make_bert()
    masks = half(model)
    optimizer = make_optimizer(model.parameters())
    masks.attach(optimizer)
    trainer, _ = make_trainer(model, optimizer, lambda: None, max_steps=2)
    trainer.train()
    trainer.save_model("model")
    model.save_pretrained("pretrained")
    for folder in ("model", "pretrained"):
        loaded = type(model).from_pretrained(tmp_path / folder)
        expect_equal(loaded, model)
        expect_removed(loaded, by_hand(masks))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"model.safetensors", "config.json", "training_args.bin"} <= {path.name for path in written}
    assert [path.name for path in written if b"secateur" in path.read_bytes().lower()] == []


# -- accelerate -------------------------------------------------------------------------------


def accelerated(model: nn.Module, optimizer: Optimizer, accumulate: int) -> Iterator[Any]:
    """Its documented loop; yields the prepared optimizer once, then None after every batch."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    net, prepared, loader = accelerator.prepare(model, optimizer, make_loader(make_batches(5 * accumulate)))
    net.train()
    yield prepared
    for batch in loader:
        with accelerator.accumulate(net):
            accelerator.backward(loss_of(net, batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(net.parameters(), CLIP)
            prepared.step()
            prepared.zero_grad()
        yield None


@pytest.mark.parametrize("attached", [("raw",), ("prepared",), ("raw", "prepared")], ids="+".join)
def test_accelerate_holds_masks(attached: tuple[str, ...]) -> None:
    model = make_net()
    masks = half(model)
    start, kept, calls = copy.deepcopy(model), by_hand(masks), [0]
    optimizer = make_optimizer(model.parameters())
    optimizer.register_step_post_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    if "raw" in attached:
        masks.attach(optimizer)
    loop = accelerated(model, optimizer, accumulate=2)
    prepared = next(loop)
    assert prepared is not optimizer
    if "prepared" in attached:
        masks.attach(prepared)
    for _ in loop:
        expect_removed(model, kept)
    assert calls == [5]
    expect_equal(model, held_by_hand(start, masks, make_batches(10), accumulate=2))


@pytest.mark.parametrize("attached", ["raw", "prepared"])
@pytest.mark.parametrize("plan", [PLAN, STREAMED], ids=["magnitude", "taylor"])
def test_accelerate_drives_the_pruner_by_optimizer_steps(plan: Plan, attached: str) -> None:
    model = make_net()
    start = copy.deepcopy(model)
    pruner, optimizer = Pruner(model, plan), make_optimizer(model.parameters())
    loop = accelerated(model, optimizer, accumulate=2)
    prepared = next(loop)
    pruner.attach(optimizer if attached == "raw" else prepared)
    assert [pruner.clock for _ in loop] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    twin, plain = pruned_plainly(start, plan, make_batches(10), accumulate=2)
    expect_same_pruning(pruner, plain)
    expect_equal(model, twin)
