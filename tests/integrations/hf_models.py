"""Tiny models of ``transformers`` for the tests of this folder, and the way to a file and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.removal.zoo import hf

__all__ = ["IDS", "MAKERS", "auto_logits", "inputs", "logits", "make"]


def mistral() -> nn.Module:
    config = transformers.MistralConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.MistralForCausalLM(config)


def qwen() -> nn.Module:
    """Norms of queries and keys have the epsilon of the stream, and another width."""
    config = transformers.Qwen3Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=32, initializer_range=0.2, rms_norm_eps=0.01,
        tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.Qwen3ForCausalLM(config)


def mixtral() -> nn.Module:
    """With what ``from_pretrained`` takes by itself: experts by a grouped product, and a cache."""
    config = copy.deepcopy(hf.mixtral().config)
    config._experts_implementation = "grouped_mm"
    config.use_cache = True
    return transformers.MixtralForCausalLM(config)


def deepseek() -> nn.Module:
    """A dense layer first, experts after it, and a bias of the router beside its weight."""
    config = transformers.DeepseekV3Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=5, n_group=1, topk_group=1,
        num_experts_per_tok=2, first_k_dense_replace=2, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
        qk_nope_head_dim=4, v_head_dim=8, max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config)


def bert_mlm() -> nn.Module:
    config = copy.deepcopy(hf.bert().config)
    config.pad_token_id = 3
    return transformers.BertForMaskedLM(config)


def bart() -> nn.Module:
    config = transformers.BartConfig(
        vocab_size=40, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, init_std=0.2,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=32,
        forced_eos_token_id=2,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()
    return model


MAKERS = {
    "llama": hf.llama,
    "mistral": mistral,
    "qwen": qwen,
    "gpt2": hf.gpt2,
    "bert": hf.bert,
    "bert_mlm": bert_mlm,
    "vit": hf.vit,
    "t5": hf.t5,
    "bart": bart,
    "mixtral": mixtral,
    "deepseek": deepseek,
}
IDS = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(3))


def make(name: str) -> Any:
    """A model whose vectors are not all zeros and ones, in eval mode."""
    torch.manual_seed(0)
    model = MAKERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def inputs(name: str) -> dict[str, Tensor]:
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))}
    return {"input_ids": IDS, **({"decoder_input_ids": IDS[:, :5]} if name in {"t5", "bart"} else {})}


def logits(model: Any, given: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**given).logits


def auto_logits(model: Any, given: Mapping[str, Tensor], folder: Path) -> Tensor:
    """What the model says after ``save_pretrained`` and ``from_pretrained`` of the class that the file names."""
    model.save_pretrained(folder)
    kind = transformers.AutoConfig.from_pretrained(folder).architectures
    assert kind == [type(model).__name__]
    loaded, told = getattr(transformers, kind[0]).from_pretrained(folder, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return logits(loaded.eval(), given)
