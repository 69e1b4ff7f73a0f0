"""Trainers of transformers as users make them: their own optimizer, and callbacks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.integrations.trainer import SecateurCallback
from secateur.train.plan import Plan
from tests.masks.trainers import make_sentences

__all__ = ["GRADUAL", "fit", "make_llama", "make_trainer", "words"]

GRADUAL = Plan(sparsity=0.75, schedule="cubic", begin=1, end=5, every=2)


def make_llama(tied: bool = True) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=8, initializer_range=0.2, tie_word_embeddings=tied,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def words(count: int) -> list[dict[str, Any]]:
    """For a model of language: the labels are the tokens."""
    return [{"input_ids": one["input_ids"], "labels": one["input_ids"].clone()} for one in make_sentences(count)]


def make_trainer(model: nn.Module, callbacks: Iterable[Any], data: list[Any] | None = None, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = {
        "output_dir": "out",
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "max_steps": 6,
        "disable_tqdm": True,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        **options,
    }
    settings = {name: arguments.pop(name) for name in ("compute_metrics", "optimizers") if name in arguments}
    data = make_sentences(24) if data is None else data
    return Trainer(
        model, TrainingArguments(**arguments), train_dataset=data, eval_dataset=data[:8], callbacks=list(callbacks),
        **settings,
    )  # fmt: skip


def fit(model: nn.Module, callback: SecateurCallback, resume: str | Path | None = None, **options: Any) -> Any:
    trainer = make_trainer(model, [callback], **options)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer
