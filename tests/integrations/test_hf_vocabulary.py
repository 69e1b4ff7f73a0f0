"""Fewer tokens: the logits of those that stay are the old ones, whatever is tied to what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.integrations.huggingface import shrink_vocabulary
from tests.integrations.hf_models import auto_logits, logits, make

KEEP = [0, 1, 2, 3, 5, 9, 11, 20, 21, 30, 31]
CHOSEN = torch.tensor([[9, 3, 31, 20, 5], [0, 30, 30, 11, 9]])


def given(name: str, ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, **({"decoder_input_ids": ids.flip(1)} if name in {"t5", "bart"} else {})}


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "bert_mlm", "t5", "bart", "mixtral"])
def test_logits_of_the_tokens_that_stay_are_the_old_ones(name: str, tmp_path: Path) -> None:
    model = make(name)
    small, id_map = shrink_vocabulary(model, list(reversed(KEEP)))
    expected = logits(model, given(name, CHOSEN))[..., KEEP]
    mapped = given(name, id_map[CHOSEN])
    torch.testing.assert_close(logits(small, mapped), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(auto_logits(small, mapped, tmp_path), expected, atol=1e-5, rtol=1e-5)
    assert small.config.vocab_size == len(KEEP)
    assert id_map[KEEP].tolist() == list(range(len(KEEP)))
    assert int((id_map == -1).sum()) == 40 - len(KEEP)


def test_a_model_without_logits_of_tokens_works_too() -> None:
    model = make("bert")
    small, id_map = shrink_vocabulary(model, KEEP)
    torch.testing.assert_close(
        logits(small, given("bert", id_map[CHOSEN])), logits(model, given("bert", CHOSEN)), atol=1e-5, rtol=1e-5
    )


def test_special_tokens_get_their_new_numbers_everywhere(tmp_path: Path) -> None:
    model = make("mistral")
    model.config.pad_token_id, model.config.eos_token_id = 9, [20, 31]
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 9, [20, 31]
    model.generation_config.suppress_tokens = [4, 30]
    small, id_map = shrink_vocabulary(model, KEEP)
    assert (small.config.pad_token_id, small.config.eos_token_id) == (5, [7, 10])
    assert (small.generation_config.pad_token_id, small.generation_config.eos_token_id) == (5, [7, 10])
    assert small.generation_config.suppress_tokens == [9]
    assert small.get_input_embeddings().padding_idx == 5
    assert model.config.pad_token_id == 9
    written = small.generate(id_map[CHOSEN], attention_mask=torch.ones_like(CHOSEN), max_new_tokens=4, do_sample=False)
    assert int(written.max()) < len(KEEP)


def test_a_special_token_is_not_left_out_silently() -> None:
    with pytest.raises(ValueError, match=r"leaves out token 2, which is config.eos_token_id"):
        shrink_vocabulary(make("llama"), [0, 1, 3])


@pytest.mark.parametrize("ids", [[], [40], [-1, 2]])
def test_tokens_that_do_not_exist_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="there are 0 to 39"):
        shrink_vocabulary(make("llama"), ids)


def test_examples_with_tokens_that_go_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens \[4\]"):
        shrink_vocabulary(make("llama"), KEEP, example_inputs={"input_ids": torch.tensor([[4, 5]])})


class Plain(nn.Module):
    """Not from any library: an embedding with a padding row, and a head with a bias."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(12, 6, padding_idx=7), nn.Linear(6, 12)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.words(ids)))


@pytest.mark.parametrize("tied", [True, False])
def test_any_module_by_the_names_of_its_layers(tied: bool) -> None:
    torch.manual_seed(0)
    net, ids = Plain(tied=tied), torch.tensor([[7, 2, 11]])
    small, id_map = shrink_vocabulary(net, [2, 4, 7, 11], embedding="words", head="out", example_inputs=ids)
    torch.testing.assert_close(small(id_map[ids]), net(ids)[..., [2, 4, 7, 11]])
    assert (small.words.padding_idx, small.words.num_embeddings, small.out.out_features) == (2, 4, 4)
    assert (small.out.weight is small.words.weight) is tied


def test_any_module_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="give the names"):
        shrink_vocabulary(Plain(tied=False), [7])
    with pytest.raises(ValueError, match=r"embedding='out' is no Embedding.*'words'"):
        shrink_vocabulary(Plain(tied=False), [7], embedding="out")
    with pytest.raises(ValueError, match="its padding_idx"):
        shrink_vocabulary(Plain(tied=False), [3], embedding="words", head="out")


class Peeking(Plain):
    """What it computes depends on the number of a token."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + ids[..., None]


def test_a_model_that_reads_the_numbers_of_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was changed"):
        shrink_vocabulary(
            Peeking(tied=False), [2, 7], embedding="words", head="out", example_inputs=torch.tensor([[7]])
        )
