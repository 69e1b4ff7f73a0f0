"""Whole layers out of models: what is left computes what the model does when those layers only pass on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.integrations.huggingface import remove_layers, shrink_pretrained
from secateur.model.graph.depth import find_blocks, influence, remove_blocks
from tests.integrations.hf_models import auto_logits, inputs, logits, make

STACKS = {"llama": "model.layers", "gpt2": "transformer.h", "vit": "vit.layers", "mixtral": "model.layers"}


def passing_on(model: Any, names: list[str]) -> Any:
    """The model with layers that give back what they get."""
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _, args, kwargs, out: (args[0], *out[1:]) if isinstance(out, tuple) else args[0], with_kwargs=True
        )
    return model


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("layer", [0, -1])
def test_a_layer_goes_and_the_rest_comes_back_from_a_file(name: str, layer: int, tmp_path: Path) -> None:
    given = inputs(name)
    small = remove_layers(make(name), [layer], example_inputs=given)
    expected = logits(passing_on(make(name), [f"{STACKS[name]}.{layer % 2}"]), given)
    torch.testing.assert_close(logits(small, given), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(auto_logits(small, given, tmp_path), expected, atol=1e-5, rtol=1e-5)
    assert small.config.num_hidden_layers == 1


def test_layers_of_bert_end_in_a_norm_and_go_only_when_asked(tmp_path: Path) -> None:
    given = inputs("bert")
    with pytest.raises(ValueError, match=r"'bert.encoder.layer'.*exact=False"):
        remove_layers(make("bert"), [0], example_inputs=given)
    small = remove_layers(make("bert"), [0], example_inputs=given, exact=False)
    expected = logits(passing_on(make("bert"), ["bert.encoder.layer.0"]), given)
    torch.testing.assert_close(auto_logits(small, given, tmp_path), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("stack", "field"), [("encoder.block", "num_layers"), ("decoder.block", "num_decoder_layers")])
def test_encoder_and_decoder_are_two_stacks(stack: str, field: str, tmp_path: Path) -> None:
    given = inputs("t5")
    small = remove_layers(make("t5"), [1], example_inputs=given, stack=stack)
    torch.testing.assert_close(auto_logits(small, given, tmp_path), logits(small, given), atol=1e-5, rtol=1e-5)
    assert [getattr(small.config, name) for name in ("num_layers", "num_decoder_layers")].count(1) == 1
    assert getattr(small.config, field) == 1
    # The first block holds the position bias of all.
    with pytest.raises(ValueError, match=r"cannot say that layers \[1\] of 2 are left"):
        remove_layers(make("t5"), [0], example_inputs=given, stack=stack)


def test_lists_and_thresholds_of_layers_follow(tmp_path: Path) -> None:
    """Of two dense layers before the experts one goes."""
    given = inputs("deepseek")
    small = remove_layers(make("deepseek"), [0], example_inputs=given)
    assert (small.config.first_k_dense_replace, small.config.num_hidden_layers) == (1, 2)
    torch.testing.assert_close(auto_logits(small, given, tmp_path), logits(small, given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mistral", "gpt2"])
def test_the_cache_finds_the_layers_that_are_left(name: str) -> None:
    small = remove_layers(make(name), [0], example_inputs=inputs(name))
    ids = inputs(name)["input_ids"]
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 7, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        small.generate(ids, use_cache=True, **given),
        small.generate(ids, use_cache=False, **given),
    )
    step = small(input_ids=ids, use_cache=True)
    assert len(step.past_key_values.layers) == small.config.num_hidden_layers
    assert all(layer.keys is not None and layer.keys.shape[2] == 9 for layer in step.past_key_values.layers)


def test_the_layer_that_turns_its_input_least_goes_first() -> None:
    model, given = make("mistral"), inputs("mistral")
    with torch.no_grad():
        for weight in (model.model.layers[1].self_attn.o_proj.weight, model.model.layers[1].mlp.down_proj.weight):
            weight.mul_(0.01)
    names = [f"model.layers.{index}" for index in range(3)]
    scores = influence(model, names, given)
    assert min(scores, key=scores.__getitem__) == names[1]
    small = shrink_pretrained(model, example_inputs=given, layers=2)
    torch.testing.assert_close(small.model.layers[1].mlp.up_proj.weight, model.model.layers[2].mlp.up_proj.weight)


@pytest.mark.parametrize(
    ("layers", "words"), [([2], "0 to 1"), ([0, 1], "at least one has to stay"), ([True], "0 to 1")]
)
def test_wrong_layers_are_named(layers: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        remove_layers(make("gpt2"), layers, example_inputs=inputs("gpt2"))


class Residual(nn.Module):
    """Identity shortcut with batch norm, as in residual networks; a last one without the shortcut."""

    def __init__(self, width: int, index: int, shortcut: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.layer_idx, self.shortcut = index, shortcut

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.conv(x))
        return torch.relu(x + inner if self.shortcut else inner)


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stage = nn.Sequential(Residual(4, 0), Residual(4, 1))
        self.tail = nn.ModuleList([Residual(4, 0), Residual(4, 1, shortcut=False), Residual(4, 2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(torch.relu(self.stem(x)))
        for block in self.tail:
            x = block(x)
        return x.mean((2, 3))


def convolutional() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = Convolutional().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            module.bias.data.normal_()
    return net, torch.randn(2, 3, 8, 8)


def test_blocks_of_any_network_are_found_by_what_they_compute() -> None:
    net, x = convolutional()
    assert list(find_blocks(net, x)) == ["stage", "stage.0", "stage.1", "tail.0", "tail.2"]
    assert "tail.1" in find_blocks(net, x, exact=False)
    assert all(parameter.any() for parameter in net.parameters())


def test_blocks_of_any_network_go() -> None:
    net, x = convolutional()
    expected = passing_on(convolutional()[0], ["stage.1", "tail.0"])(x)
    small = remove_blocks(net, ["stage.1", "tail.0"], example_inputs=x)
    torch.testing.assert_close(small(x), expected)
    assert [type(one).__name__ for one in (*small.stage, *small.tail)] == ["Residual", "Identity"] + ["Residual"] * 2
    assert [one.layer_idx for one in small.tail] == [0, 1]
    assert len(net.tail) == 3
    with pytest.raises(ValueError, match="exact=False allows it"):
        remove_blocks(net, ["tail.1"], example_inputs=x)
    with pytest.raises(ValueError, match="is no block"):
        remove_blocks(net, ["stem"], example_inputs=x)


class Counting(Convolutional):
    """Its forward asks for a block by number."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(torch.relu(self.stem(x)))
        return self.tail[2](self.tail[0](x)).mean((2, 3))


def test_a_forward_that_counts_is_refused_and_left_alone() -> None:
    net, x = Counting().eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="the forward fails"):
        remove_blocks(net, ["tail.0"], example_inputs=x)
    assert len(net.tail) == 3
