"""For trainers that own the loop: a quiet place to run them, tiny models, and the same loop written out plainly."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from secateur.model.masks import Masks
from secateur.train.plan import Plan
from secateur.train.prune import prune
from secateur.train.pruner import Pruner
from tests.masks.nets import Oracle, loss_of

PLAN = Plan(sparsity=0.75, schedule="linear", begin=1, end=3)
STREAMED = Plan(sparsity=0.75, criterion="taylor", schedule="linear", begin=1, end=3)
"""Reads the gradients that the optimizer sees: a trainer that hides them prunes the wrong weights."""
CLIP = 0.1


@contextmanager
def quiet(place: Path) -> Iterator[None]:
    """No network, no telemetry, nothing written outside ``place``, and no state left behind."""
    off = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "HF_HOME": str(place / "hf")}
    before = Path.cwd()
    with mock.patch.dict(os.environ, off):
        from accelerate.state import AcceleratorState, GradientState

        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(before)
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()


def make_optimizer(parameters: Iterable[nn.Parameter]) -> SGD:
    """It has trained before: its momentum moves removed weights whose gradients are zero."""
    optimizer = SGD(parameters, lr=0.1, momentum=0.9)
    for parameter in optimizer.param_groups[0]["params"]:
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, 0.01)
    return optimizer


def make_loader(batches: list[tuple[Tensor, Tensor]]) -> DataLoader[tuple[Tensor, ...]]:
    """The same batches again, in their order."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return DataLoader(TensorDataset(images, labels), batch_size=len(batches[0][1]))


def make_bert() -> nn.Module:
    """Embeddings, attention, layer norms, a pooler and a head, without dropout, from a configuration alone."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(
        BertConfig(vocab_size=20, max_position_embeddings=6, num_labels=3, **sizes, **no_dropout)
    )


def make_sentences(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        {
            "input_ids": torch.randint(20, (5,), generator=generator),
            "attention_mask": torch.ones(5, dtype=torch.long),
            "labels": torch.randint(3, (), generator=generator),
        }
        for _ in range(count)
    ]


def bert_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return model(**batch).loss


def half(model: nn.Module) -> Masks:
    return prune(model, sparsity=0.5)


def by_hand(masks: Masks) -> dict[str, Tensor]:
    return {name: masks[name] for name in masks}


def plainly(
    model: nn.Module,
    batches: list[Any],
    *,
    optimizer: Optimizer,
    step: Callable[[], None],
    loss: Callable[[nn.Module, Any], Tensor] = loss_of,
    accumulate: int = 1,
    before_clip: Callable[[], None] = lambda: None,
) -> None:
    """The loop that the trainers hide."""
    model.train()
    for number, batch in enumerate(batches, start=1):
        (loss(model, batch) / accumulate).backward()
        if number % accumulate == 0:
            before_clip()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            step()
            optimizer.zero_grad()


def held_by_hand(
    model: nn.Module, masks: Masks, batches: list[Any], *, hold_before_clip: bool = False, **options: Any
) -> nn.Module:
    """What training ``model`` should give, with the masks held by the test."""
    oracle = Oracle(model, by_hand(masks), make_optimizer)
    if hold_before_clip:
        options["before_clip"] = oracle.hold_gradients
    plainly(oracle.model, batches, optimizer=oracle.optimizer, step=oracle.step, **options)
    return oracle.model


def pruned_plainly(model: nn.Module, plan: Plan, batches: list[Any], **options: Any) -> tuple[nn.Module, Pruner]:
    """What a pruner in a plain loop makes of a copy of ``model``."""
    twin = copy.deepcopy(model)
    pruner, optimizer = Pruner(twin, plan), make_optimizer(twin.parameters())
    pruner.attach(optimizer)
    plainly(twin, batches, optimizer=optimizer, step=optimizer.step, **options)
    return twin, pruner


def expect_same_pruning(pruner: Pruner, plain: Pruner) -> None:
    """The same updates at the same optimizer steps, and the same weights gone."""
    assert pruner.clock == plain.clock
    assert pruner.history == plain.history
    assert [point.step for point in pruner.history] == [1, 2, 3]
    for name in plain.masks:
        assert torch.equal(pruner.masks[name], plain.masks[name]), name
