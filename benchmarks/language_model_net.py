"""The given language model, rebuilt: a small decoder of the llama kind, its characters, its stories."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["Decoder", "load_decoder", "nats", "stories"]

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, WORDS, CONTEXT = 128, 352, 5, 8, 4, 105, 256
SIZE = DIM // HEADS


class Attention(nn.Module):
    """Grouped-query attention with rotary positions on adjacent pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(DIM, DIM, bias=False)
        self.wk, self.wv = (nn.Linear(DIM, KV_HEADS * SIZE, bias=False) for _ in range(2))
        self.wo = nn.Linear(DIM, DIM, bias=False)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        samples, length, _ = x.shape
        q, k, v = (linear(x).view(samples, length, -1, SIZE).transpose(1, 2) for linear in (self.wq, self.wk, self.wv))
        k, v = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (turned(k, turn), v))
        out = F.scaled_dot_product_attention(turned(q, turn), k, v, is_causal=True)
        return self.wo(out.transpose(1, 2).reshape(samples, length, DIM))


class FeedForward(nn.Module):
    """``w2(silu(w1 x) * w3 x)``."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(DIM, HIDDEN, bias=False) for _ in range(2))
        self.w2 = nn.Linear(HIDDEN, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(), FeedForward()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(DIM, 1e-5), nn.RMSNorm(DIM, 1e-5)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn)
        return x + self.feed_forward(self.ffn_norm(x))


class Decoder(nn.Module):
    """Logits ``[B, T, words]`` of ids ``[B, T]``; the head is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(WORDS, DIM)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(DIM, 1e-5)
        angles = torch.arange(CONTEXT)[:, None] * 10000.0 ** (-torch.arange(0, SIZE, 2) / SIZE)
        self.register_buffer("turn", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [B, T] to logits [B, T, vocabulary]."""
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x, self.turn[: ids.shape[1]])
        return F.linear(self.norm(x), self.tok_embeddings.weight)


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2).to(x)


def load_decoder(folder: Path) -> Decoder:
    """The trained model, in eval mode."""
    model = Decoder()
    model.load_state_dict(load_file(folder / "babyllama_tok105.safetensors"))
    return model.eval()


def stories(text: Path, vocabulary: Path) -> list[Tensor]:
    """Ids of each story, at most a context of them and the one behind: BOS, then one id per character.

    A line break is not in the vocabulary: the unknown id, as the tokenizer has it.
    """
    pieces = [line.split("\t")[0] for line in vocabulary.read_text(encoding="utf-8").split("\n") if "\t" in line]
    known = {piece: at for at, piece in enumerate(pieces)}
    found: list[Tensor] = []
    for story in text.read_text(encoding="utf-8").split("<|endoftext|>"):
        words = "\u2581" + story.strip().replace(" ", "\u2581")
        if len(words) > 1:
            ids = [1, *[known.get(letter, 0) for letter in words]]
            found.append(torch.tensor(ids[: CONTEXT + 1]))
    return found


@torch.no_grad()
def nats(model: nn.Module, texts: list[Tensor]) -> float:
    """Mean loss per token over texts of any length."""
    total = count = 0
    for text in texts:
        logits = model(text[None, :-1])[0]
        total += float(F.cross_entropy(logits, text[1:], reduction="sum"))
        count += len(text) - 1
    return total / count
