"""Narrower models of transformers: they compute what the masked ones do, and come back from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import secateur as sc
from secateur.integrations.huggingface import shrink_pretrained
from tests.integrations.hf_models import auto_logits, inputs, logits, make

WIDTHS: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("llama", {"mlp": 0.5}, {"intermediate_size": 24}),
    ("llama", {"mlp": 20}, {"intermediate_size": 20}),
    ("llama", {"heads": 0.5}, {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}),
    ("llama", {"hidden": 0.25}, {"hidden_size": 24, "head_dim": 8, "num_attention_heads": 4}),
    (
        "mistral",
        {"mlp": 16, "heads": 2, "hidden": 20, "layers": [1]},
        {"intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 20,
         "num_hidden_layers": 2, "head_dim": 8},
    ),
    ("qwen", {"hidden": 0.25}, {"hidden_size": 24}),
    ("gpt2", {"mlp": 0.5}, {"n_inner": 24}),
    ("bert", {"mlp": 0.5}, {"intermediate_size": 24}),
    ("vit", {"mlp": 0.5, "heads": 0.5}, {"intermediate_size": 24, "num_attention_heads": 2, "head_dim": 8}),
    ("t5", {"mlp": 0.5}, {"d_ff": 24}),
    ("t5", {"heads": 0.5}, {"num_heads": 2, "d_kv": 8}),
    ("mixtral", {"mlp": 0.5, "heads": 0.5}, {"intermediate_size": 16, "num_key_value_heads": 1}),
    ("deepseek", {"mlp": 0.5}, {"intermediate_size": 24, "moe_intermediate_size": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "amounts", "numbers"), WIDTHS)
def test_the_result_is_described_by_its_configuration(
    name: str, amounts: dict[str, Any], numbers: dict[str, int], tmp_path: Path
) -> None:
    model, given = make(name), inputs(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = shrink_pretrained(model, example_inputs=given, **amounts)
    assert type(small) is type(model)
    assert {key: getattr(small.config, key) for key in numbers} == numbers
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(auto_logits(small, given, tmp_path), logits(small, given), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def zeroed_logits(name: str, gone: dict[str, list[int]]) -> torch.Tensor:
    """The model after columns of some weights were set to zero by hand."""
    model = make(name)
    with torch.no_grad():
        for weight, columns in gone.items():
            model.get_parameter(weight)[:, columns] = 0.0
    return logits(model, inputs(name))


def test_the_lowest_of_each_layer_go_and_the_rest_is_unchanged() -> None:
    model, given = make("llama"), inputs("llama")
    scores = {
        f"model.layers.{layer}.mlp.gate_proj.weight": torch.rand(48, generator=torch.Generator().manual_seed(layer))
        for layer in range(2)
    }
    small = shrink_pretrained(model, example_inputs=given, mlp=0.5, criterion=scores)
    gone = {
        name.replace("gate", "down"): sorted(range(48), key=score.tolist().__getitem__)[:24]
        for name, score in scores.items()
    }
    torch.testing.assert_close(logits(small, given), zeroed_logits("llama", gone), atol=1e-5, rtol=1e-5)


def test_whole_key_value_groups_go_with_their_queries() -> None:
    model, given = make("llama"), inputs("llama")
    scores = {f"model.layers.{layer}.self_attn.q_proj.weight": torch.tensor([0.0, 1.0]) for layer in range(2)}
    small = shrink_pretrained(model, example_inputs=given, heads=0.5, criterion=scores)
    gone = {f"model.layers.{layer}.self_attn.o_proj.weight": list(range(16)) for layer in range(2)}
    torch.testing.assert_close(logits(small, given), zeroed_logits("llama", gone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_a_narrower_stream_is_exact_through_rms_norms(name: str) -> None:
    """Also where one epsilon in the configuration has to do for norms of two widths, and the head is tied."""
    model, given = make(name), inputs(name)
    scores = {"model.embed_tokens.weight": torch.arange(32.0)}
    small = shrink_pretrained(model, example_inputs=given, hidden=24, criterion=scores)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:8] = 0.0
            layer.mlp.down_proj.weight[:8] = 0.0
        model.model.embed_tokens.weight[:, :8] = 0.0
    torch.testing.assert_close(logits(small, given), logits(model, given), atol=1e-5, rtol=1e-4)
    ratio = small.config.rms_norm_eps / model.config.rms_norm_eps
    assert ratio == pytest.approx({"llama": 32 / 24, "qwen": 1.0}[name])


def test_the_cache_works_after_all_of_it() -> None:
    small = shrink_pretrained(
        make("mistral"), example_inputs=inputs("mistral"), mlp=0.5, heads=0.5, hidden=0.25, layers=[0]
    )
    given = {"input_ids": inputs("mistral")["input_ids"], "attention_mask": torch.ones(2, 9, dtype=torch.int64)}
    written = [
        small.generate(**given, max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=0)
        for cache in (True, False)
    ]
    assert torch.equal(*written)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_heads_that_no_configuration_can_lose_are_refused_or_go_without_it(name: str, tmp_path: Path) -> None:
    model, given = make(name), inputs(name)
    with pytest.raises(ValueError, match=r"cannot say that heads went from 4 to 2.*uniform=False"):
        shrink_pretrained(model, example_inputs=given, heads=0.5)
    with pytest.warns(UserWarning, match=r"secateur.load\(path, into"):
        small = shrink_pretrained(model, example_inputs=given, heads=0.5, uniform=False)
    sc.save(small, tmp_path / "small.safetensors")
    loaded = sc.load(tmp_path / "small.safetensors", into=make(name))
    torch.testing.assert_close(logits(loaded, given), logits(small, given))
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.parameters())


def test_one_ranking_of_all_layers_gives_them_different_widths() -> None:
    scores = {f"model.layers.{layer}.mlp.gate_proj.weight": torch.arange(48.0) + 30 * layer for layer in range(2)}
    with pytest.warns(UserWarning, match="differ from layer to layer"):
        small = shrink_pretrained(
            make("llama"), example_inputs=inputs("llama"), mlp=0.5, uniform=False, criterion=scores
        )
    assert [layer.mlp.down_proj.in_features for layer in small.model.layers] == [8, 40]  # 9 and 39, by 4


@pytest.mark.parametrize(
    ("name", "amounts", "words"),
    [
        ("llama", {}, "nothing is asked for"),
        ("llama", {"mlp": 1.5}, "between 0 and 1"),
        ("llama", {"mlp": True}, "between 0 and 1"),
        ("llama", {"mlp": 60}, "there are 48"),
        ("llama", {"heads": 3}, "2 query heads share a key/value head"),
        ("bert", {"hidden": 0.25}, "layer norm takes mean and variance"),
        ("bert", {"layers": 0.5}, "exact=False"),
        ("t5", {"layers": 0.5}, r"stacks \['encoder.block', 'decoder.block'\]"),
        ("mixtral", {"mlp": 6}, "16 bytes"),
        ("deepseek", {"mlp": 10}, "give the share"),
        ("llama", {"mlp": 0.02}, "of 48 all would stay, by multiples of 4"),
        ("llama", {"layers": 0.1}, "of 2 all would stay"),
        ("llama", {"experts": 0.5}, "no layer with experts"),
        ("llama", {"mlp": 0.5, "criterion": {"a": torch.ones(2)}}, "scores of"),
    ],
)
def test_what_cannot_be_done_is_said(name: str, amounts: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shrink_pretrained(make(name), example_inputs=inputs(name), **amounts)


def test_other_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="PreTrainedModel"):
        shrink_pretrained(torch.nn.Linear(2, 2), example_inputs=torch.zeros(1, 2), mlp=0.5)


def test_a_layer_norm_stream_narrows_when_asked_and_comes_back(tmp_path: Path) -> None:
    model, given = make("vit"), inputs("vit")
    small = shrink_pretrained(model, example_inputs=given, hidden=0.25, exact=False)
    assert small.config.hidden_size == 24
    torch.testing.assert_close(auto_logits(small, given, tmp_path), logits(small, given), atol=1e-5, rtol=1e-5)


def test_dtype_mode_and_frozen_parameters_stay() -> None:
    model = make("llama").to(torch.bfloat16).train()
    model.lm_head.requires_grad_(requires_grad=False)
    small = shrink_pretrained(model, example_inputs=inputs("llama"), mlp=0.5)
    assert small.dtype == torch.bfloat16
    assert small.training
    assert [name for name, p in small.named_parameters() if not p.requires_grad] == ["lm_head.weight"]


def test_the_class_of_the_task_finds_it(tmp_path: Path) -> None:
    small = shrink_pretrained(make("llama"), example_inputs=inputs("llama"), mlp=0.5)
    small.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded, inputs("llama")), logits(small, inputs("llama")))
