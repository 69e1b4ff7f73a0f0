"""Tiny networks of the ``transformers`` package, made from configurations: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from torch import Tensor, nn

from tests.removal.zoo.architecture import image, tokens

__all__ = ["bert", "conditional", "gpt2", "ids", "llama", "mixtral", "pixels", "t5", "vit"]

# The default, 0.02, makes outputs so small at these widths that an absolute tolerance would see nothing.
SPREAD = 0.2


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=SPREAD, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=32, n_embd=32, n_layer=2, n_head=4, n_inner=48, initializer_range=SPREAD,
        use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=32, initializer_range=SPREAD,
    )  # fmt: skip
    config.num_labels = 5
    return transformers.BertForSequenceClassification(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=4,
        initializer_range=SPREAD,
    )  # fmt: skip
    config.num_labels = 5
    config._attn_implementation = "eager"
    return transformers.ViTForImageClassification(config)


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(
        vocab_size=40, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=32,
        initializer_range=SPREAD, use_cache=False,
    )  # fmt: skip
    # The default, a grouped product, takes widths in multiples of 16 bytes only; the loop takes any.
    config._experts_implementation = "eager"
    return transformers.MixtralForCausalLM(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, use_cache=False,
        relative_attention_num_buckets=8, relative_attention_max_distance=16, initializer_factor=1.0,
        pad_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def ids(length: int = 10) -> Callable[[int], dict[str, Tensor]]:
    """Batch size -> token ids by keyword."""
    make = tokens(40, length)
    return lambda batch: {"input_ids": make(batch)}


def pixels() -> Callable[[int], dict[str, Tensor]]:
    """Batch size -> images by keyword."""
    make = image(3, 16)
    return lambda batch: {"pixel_values": make(batch)}


def conditional() -> Callable[[int], dict[str, Any]]:
    """Batch size -> source and target ids."""
    source, target = tokens(40, 9), tokens(40, 6)
    return lambda batch: {"input_ids": source(batch), "decoder_input_ids": target(batch)}
