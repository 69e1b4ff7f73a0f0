"""Channels of transformers in another order: the stream and the layers between, through ``save_pretrained``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import secateur as sc
from tests.integrations.hf_models import auto_logits, inputs, logits, make

STREAM = {"llama": "model.embed_tokens.weight", "bert": "bert.embeddings.word_embeddings.weight"}
MLP = {"llama": "model.layers.1.mlp.gate_proj.weight", "bert": "bert.encoder.layer.1.intermediate.dense.weight"}
VALUES = {"llama": "model.layers.1.self_attn.v_proj.weight", "bert": "bert.encoder.layer.0.attention.self.value.weight"}


@pytest.mark.parametrize("name", STREAM)
def test_a_transformer_says_what_it_did_and_keeps_more(name: str, tmp_path: Path) -> None:
    model, given = make(name), inputs(name)
    said, before = logits(model, given), {key: value.clone() for key, value in model.state_dict().items()}
    done = sc.permute_channels(model, sc.NM(2, 4), example_inputs=given, criterion="ria", data=[given])
    assert {STREAM[name], MLP[name], VALUES[name]} <= set(done.orders)
    layers = {one.name: one for one in done.layers}
    heads = layers[VALUES[name].replace("v_proj", "o_proj").replace("self.value", "output.dense")]
    assert heads.after > heads.before
    reader = MLP[name].replace("gate_proj", "down_proj").replace("intermediate.dense", "output.dense")
    assert layers[reader].after > 1.01 * layers[reader].before
    assert all(any(part in why for part in ("output", "buffer", "no layer", "no better")) for why in done.left.values())
    assert torch.allclose(logits(model, given), said, atol=1e-5)
    assert torch.allclose(auto_logits(model, given, tmp_path), said, atol=1e-5)
    scores = sc.score(model, "ria", data=[given])
    masks = sc.prune(model, within=sc.NM(2, 4), criterion="ria", data=[given])
    kept = sum(float(scores[key][mask].double().sum()) for key, mask in masks.items())
    assert kept == pytest.approx(done.after, rel=1e-3)  # norms are measured anew, rounded otherwise
    masks.undo()
    done.undo()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
