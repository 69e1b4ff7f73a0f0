"""The second list: recurrent networks, attention, experts, and ``transformers``."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from tests.removal.zoo import attention, hf, language, recurrent, swin
from tests.removal.zoo.architecture import Architecture, image, seeded, tokens, vectors

__all__ = ["THEN"]


def then(
    name: str, build: Any, inputs: Any, groups: int, units: int, macs: float, note: str, **more: Any
) -> Architecture:
    make = seeded(build)
    return Architecture(name, make, inputs, groups, "then", macs_at_half=macs, min_units=units, note=note, **more)


def source_and_target(batch: int) -> tuple[Tensor, Tensor]:
    return tokens(40, 8)(batch), tokens(40, 5)(batch)


def sequence_and_memory(batch: int) -> tuple[Tensor, Tensor]:
    return vectors(7, 6)(batch), vectors(9, 5)(batch)


THEN: tuple[Architecture, ...] = (
    then("lstm", recurrent.LSTMTagger, tokens(), 2, 28, 0.269, "embedding 12, hidden 16 (four rows of each matrix)"),
    then("lstm_two_layers_bidirectional", partial(recurrent.LSTMTagger, 2, True), tokens(), 2, 28, 0.258,
         "embedding 12; the module has one hidden size, so a unit is one of each layer and direction: 16"),
    then("lstm_projected", partial(recurrent.LSTMTagger, 1, False, 8), tokens(), 3, 36, 0.263,
         "12; cells 16; projected 8"),
    then("lstm_cell", recurrent.CellTagger, vectors(5, 6), 2, 28, 0.270,
         "inp 12, hidden 16 (hidden_size makes the state)"),
    then("lstm_encoder_decoder", recurrent.Seq2Seq, source_and_target, 2, 28, 0.281, "embedding 12, 16 of both LSTMs"),
    then("gru", recurrent.GRUForecaster, vectors(6, 4), 3, 48, 0.260, "encode 12, hidden 16, fc1 20"),
    then("vit_heads_told", partial(attention.VisionTransformer, "attributes"), image(), 2, 128, 0.796,
         "hidden 64 twice; the stream passes LayerNorm; heads and their width are attributes",
         heads=(4, 4), head_dims=(8, 8)),
    then("vit_heads_untold", partial(attention.VisionTransformer, "open"), image(), 2, 128, 0.796,
         "hidden 64 twice; heads are the number 4 in the call, their width is free", head_dims=(8, 8)),
    then("vit_bound_to_stream", partial(attention.VisionTransformer, "stream"), image(), 2, 128, 0.796,
         "hidden 64 twice; heads come from the width of the stream, which passes LayerNorm"),
    then("attention_separate", attention.SeparateAttention, tokens(), 1, 48, 0.787,
         "hidden 48; queries with keys (whose scale has to stay) and values have widths of their own",
         heads=(4,), head_dims=(8, 8)),
    then("grouped_query_attention", attention.GroupedQueryLM, tokens(), 1, 48, 0.829,
         "hidden 48; 4 key/value heads with their 2 query heads each; rotation pairs 3 and 3 of a head's 6 places",
         heads=(4,), head_dims=(3,)),
    then("nano_gpt", attention.NanoGPT, lambda batch: (tokens()(batch), tokens(40, 10)(batch)), 2, 128, 0.784,
         "hidden 64 twice; heads come from the width of the stream"),
    then("multihead_attention", attention.CrossAttentionNet, sequence_and_memory, 2, 68, 0.798,
         "hidden 48; memory 20 (kdim, vdim); heads need another module: not counted"),
    then("transformer_encoder_post", partial(attention.EncoderNet, False), tokens(), 2, 96, 0.787, "hidden 48 twice"),
    then("transformer_encoder_pre", partial(attention.EncoderNet, True), tokens(), 2, 96, 0.787, "hidden 48 twice"),
    then("swiglu_chunk", partial(language.GatedLM, "chunk"), tokens(), 2, 48, 0.609, "24 pairs of rows, twice"),
    then("swiglu_split", partial(language.GatedLM, "split"), tokens(), 2, 48, 0.609,
         "the same; the size of a part is an attribute that has to follow"),
    then("swiglu_sections", partial(language.GatedLM, "sections"), tokens(), 2, 48, 0.609,
         "the same, both sizes given"),
    then("swiglu_glu", partial(language.GatedLM, "glu"), tokens(), 2, 48, 0.609, "torch's gated linear unit"),
    then("rms_norm", partial(language.RootMeanSquareLM, False), tokens(), 3, 88, 0.294,
         "hidden 32 twice; the stream 24, exact when gain and eps follow the width", consumer_law=False),
    then("rms_norm_by_hand", partial(language.RootMeanSquareLM, True), tokens(), 3, 88, 0.294,
         "the same: x * rsqrt(mean(x^2) + eps) is recognised", consumer_law=False),
    then("experts_top_one", language.TopOneExperts, tokens(), 4, 96, 0.740, "hidden 24 of each of 4 experts"),
    then("experts_dense", language.DenseExperts, tokens(), 1, 24, 0.600, "hidden 24, the same place in all experts"),
    then("swin", swin.Swin, image(), 4, 192, 0.797, "hidden 32, 32, 64, 64; heads with their column of the bias table",
         heads=(2, 2, 4, 4), head_dims=(8, 8, 8, 8)),
    then("hf_llama", hf.llama, hf.ids(), 3, 128, 0.362,
         "hidden 48 twice, the stream 32 with eps and gain of its norms; 2 key/value heads with theirs; head places in "
         "pairs, the same in both layers, which share one table of frequencies",
         consumer_law=False, heads=(2, 2), head_dims=(4,)),
    then("hf_gpt2", hf.gpt2, hf.ids(), 2, 96, 0.804, "hidden 48 twice; split_size has to follow the heads",
         heads=(4, 4), head_dims=(8, 8)),
    then("hf_bert", hf.bert, hf.ids(), 3, 128, 0.784,
         "hidden 48 twice, the pooler 32; one head size for all projections",
         heads=(4, 4), head_dims=(8, 8)),
    then("hf_vit", hf.vit, hf.pixels(), 2, 96, 0.830, "hidden 48 twice; one head size for all projections",
         heads=(4, 4), head_dims=(8, 8)),
    then("hf_mixtral", hf.mixtral, hf.ids(), 3, 80, 0.364,
         "hidden 24, the same place in all experts, twice; the stream 32 and the heads as in Llama",
         consumer_law=False, heads=(2, 2), head_dims=(4,)),
    then("hf_t5", hf.t5, hf.conditional(), 4, 192, 0.838,
         "hidden 48 four times; heads are bound over layers by the bias that they share: encoder, decoder, cross; one "
         "head size for all projections of a layer", consumer_law=False, heads=(4, 4, 4), head_dims=(8,) * 6),
)  # fmt: skip
