"""Attention that can lose heads: it computes what torch's does, and without a head what torch's does with zeros."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.deploy.attention import Attention, open_attention
from tests.oracles.removal import Slices, run, zeroed
from tests.removal.attention_net import HEAD_ONE, Around, near, unsettled
from tests.removal.zoo.table import ARCHITECTURES

OPTIONS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "own_key_and_zeros": {"add_bias_kv": True, "add_zero_attn": True},
    "other_widths": {"kdim": 12, "vdim": 20, "batch_first": True},
    "all": {"kdim": 12, "vdim": 20, "add_bias_kv": True, "add_zero_attn": True},
}


def attention(options: dict[str, Any], **more: Any) -> nn.MultiheadAttention:
    made = unsettled(nn.MultiheadAttention(16, 4, **options, **more))
    assert isinstance(made, nn.MultiheadAttention)
    return made


def arguments(module: nn.MultiheadAttention, *, batched: bool, mask: str, padding: bool) -> tuple[Any, dict[str, Any]]:
    """Query, key, value of 5 and 7 places, and the masks."""
    draw = torch.Generator().manual_seed(1)
    shapes = [(5, 3, 16), (7, 3, module.kdim), (7, 3, module.vdim)]
    tensors = [torch.randn(shape, generator=draw) for shape in shapes]
    if not batched:
        tensors = [tensor[:, 0] for tensor in tensors]
    elif module.batch_first:
        tensors = [tensor.transpose(0, 1) for tensor in tensors]
    causal = torch.ones(5, 7).triu(1).bool()
    heads = 4 * (3 if batched else 1)
    masks = {"": None, "bool": causal, "float": torch.randn(5, 7, generator=draw), "causal": causal}
    masks["heads"] = torch.randn(heads, 5, 7, generator=draw)
    ends = torch.zeros((3, 7) if batched else (7,), dtype=torch.bool)
    ends[..., 5:] = padding
    floats = torch.zeros(ends.shape).masked_fill(ends, float("-inf"))
    given = (ends if mask in ("", "bool", "causal") else floats) if padding else None
    return tensors, {"attn_mask": masks[mask], "key_padding_mask": given, "is_causal": mask == "causal"}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_computes_what_torch_does(options: dict[str, Any]) -> None:
    module = attention(options, dropout=0.25)
    opened = open_attention(module)
    assert type(opened) is Attention
    kinds = itertools.product((False, True), ("", "bool", "float", "heads", "causal"), (False, True), (False, True))
    for batched, mask, padding, train in kinds:
        given, more = arguments(module, batched=batched, mask=mask, padding=padding)
        for need, average in ((False, True), (True, True), (True, False)):
            results = []
            for each in (module, opened):
                torch.manual_seed(5)
                results.append(each.train(train)(*given, need_weights=need, average_attn_weights=average, **more))
            assert near(*results), (batched, mask, padding, train, need, average)


def test_one_tensor_for_queries_keys_and_values() -> None:
    module, x = attention({"batch_first": True}), torch.randn(2, 5, 16)
    opened = open_attention(module)
    assert near(opened(x, x, x), module(x, x, x))
    assert near(opened(x, x, x, need_weights=False), module(x, x, x, need_weights=False))
    other = x.flip(1)
    assert near(opened(x, other, other), module(x, other, other))


@pytest.mark.parametrize("norm_first", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["length_first", "batch_first"])
def test_torch_layers_around_it(norm_first: bool, batch_first: bool) -> None:
    sizes = {"norm_first": norm_first, "batch_first": batch_first}
    layers = [
        unsettled(nn.TransformerEncoderLayer(16, 4, 24, **sizes)),
        unsettled(nn.TransformerDecoderLayer(16, 4, 24, **sizes)),
    ]
    x, memory = torch.randn(5, 3, 16), torch.randn(7, 3, 16)
    if batch_first:
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    floats = torch.zeros(3, 5).masked_fill(padding, float("-inf"))
    calls: list[tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]] = [
        (layers[0], (x,), {}),
        (layers[0], (x,), {"src_key_padding_mask": padding}),
        (layers[0], (x,), {"src_mask": causal, "src_key_padding_mask": floats, "is_causal": True}),
        (layers[1], (x, memory), {"tgt_mask": causal, "tgt_is_causal": True}),
        (layers[1], (x, memory), {"tgt_key_padding_mask": padding}),
    ]
    for layer, given, more in calls:
        opened = open_attention(layer)
        assert not any(isinstance(module, nn.MultiheadAttention) for module in opened.modules())
        for grad, train in ((False, False), (True, False), (True, True)):  # torch's fused kernel is for the first
            results = []
            for each in (layer, opened):
                torch.manual_seed(0)
                with torch.set_grad_enabled(grad):
                    results.append(each.train(train)(*given, **more))
            assert near(*results, 2e-5), (type(layer).__name__, more.keys(), grad, train)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_an_encoder_keeps_off_nested_tensors() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 2).eval()
    assert encoder.use_nested_tensor
    x, padding = torch.randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    opened = open_attention(encoder)
    assert encoder.use_nested_tensor
    with torch.no_grad():
        seen = ~padding
        results = [net(x, src_key_padding_mask=padding) for net in (opened, encoder)]
    assert near(results[0][seen], results[1][seen], 1e-5)
    assert not results[1][padding].any()  # said in the docstring: torch's kernel leaves zeros there
    assert results[0][padding].any()
    with pytest.raises(ValueError, match="nested tensors"):
        opened.layers[0].self_attn(*[torch.nested.nested_tensor([x[0], x[1]])] * 3)  # type: ignore[operator]


def test_head_one_of_four() -> None:
    net, x = unsettled(Around()), torch.randn(2, 6, 5)
    opened = open_attention(net)
    groups = sc.groups(opened, x, unit="head")
    assert {name: group.units for name, group in groups.items()} == {"attention.in_proj_weight": 4}
    small = sc.shrink(opened, example_inputs=x, unit="head", units={"attention.in_proj_weight": [1]})
    left = [row for row in range(24) if row not in HEAD_ONE[0][2]]
    part = small.attention
    assert torch.equal(part.in_proj_weight, net.attention.in_proj_weight[left])  # type: ignore[union-attr]
    assert part.sizes() == {"num_heads": 3, "head_dim": 2, "v_head_dim": 2, "scale": 2**-0.5}
    assert part.embed_dim == 8
    part.check()
    for batch in (1, 3):
        x = torch.randn(batch, 6, 5)
        assert near(small(x), zeroed(net, HEAD_ONE)(x))  # torch's own module, with zeros
        assert not near(small(x), net(x), 1e-3)


@pytest.mark.parametrize("need_weights", [True, False])
def test_half_of_every_head_keeps_the_scale(need_weights: bool) -> None:
    net, x = unsettled(Around(16, 2, need_weights=need_weights)), torch.randn(2, 6, 5)
    dims = [1, 3, 4, 6]
    small = sc.shrink(open_attention(net), example_inputs=x, unit="head_dim", units={"attention.in_proj_weight": dims})
    assert small.attention.sizes() == {"num_heads": 2, "head_dim": 4, "v_head_dim": 4, "scale": 8**-0.5}
    columns = [8 * head + dim for head in range(2) for dim in dims]
    rows = [16 * part + column for part in range(3) for column in columns]
    dead: list[Slices] = [("attention.in_proj_weight", 0, rows), ("attention.in_proj_bias", 0, rows)]
    assert near(small(x), zeroed(net, [*dead, ("attention.out_proj.weight", 1, columns)])(x))


@pytest.mark.parametrize(
    "options", [{"add_bias_kv": True, "add_zero_attn": True}, {"bias": False}, {"kdim": 9, "vdim": 9}]
)
def test_heads_of_every_kind_can_go(options: dict[str, Any]) -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.Linear(5, 9 if "kdim" in options else 8)
            self.attention = nn.MultiheadAttention(8, 4, **options)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            memory = self.memory(memory)
            return self.attention(x, memory, memory, need_weights=False)[0]

    net, given = unsettled(Cross()), (torch.randn(6, 2, 8), torch.randn(7, 2, 5))
    opened = open_attention(net)
    groups = sc.groups(opened, given, unit="head")
    assert [group.units for group in groups.values()] == [4]
    small = sc.shrink(opened, example_inputs=given, unit="head", units={next(iter(groups)): [0, 3]})
    assert (small.attention.num_heads, small.attention.head_dim) == (2, 2)
    gone = [0, 1, 6, 7]
    dead: list[Slices] = [(f"attention.{part}_proj_weight", 0, gone) for part in "qkv"]
    packed = [8 * part + place for part in range(3) for place in gone]
    dead += [(f"attention.{name}", 0, packed) for name in ("in_proj_weight", "in_proj_bias")]
    dead += [(f"attention.bias_{end}", 2, gone) for end in "kv"] + [("attention.out_proj.weight", 1, gone)]
    assert near(small(*given), zeroed(net, dead)(*given))


@pytest.mark.parametrize("name", ["multihead_attention", "transformer_encoder_post", "transformer_encoder_pre"])
def test_the_table_gets_heads(name: str) -> None:
    architecture = next(row for row in ARCHITECTURES if row.name == name)
    net, x = architecture.make(), architecture.inputs(2)
    assert not sc.groups(net, x, unit="head")
    opened = open_attention(net)
    assert all(near(a, b) for a, b in zip(run(opened, x), run(net, x), strict=True))
    groups = sc.groups(opened, x, unit="head")
    # The cross attention returns the mean of its heads' weights: without a head that output is another.
    assert [group.units for group in groups.values()] == ([4] if name == "multihead_attention" else [4, 4])
    small = sc.shrink(opened, example_inputs=x, unit="head", units={group: [0, 2] for group in groups})
    dead = [(m.name, m.dim, _places(m.owner, (0, 2))) for group in groups.values() for m in group.members]
    assert all(near(a, b, 1e-5) for a, b in zip(run(small, x), run(zeroed(net, dead), x), strict=True))
    mlp = sc.groups(small, x)
    assert {group.units for group in mlp.values()} >= {48}


def _places(owner: tuple[int, ...], units: tuple[int, ...]) -> list[int]:
    return [place for place, unit in enumerate(owner) if unit in units]


def test_wrong_calls_are_refused() -> None:
    module, x = Attention(8, 4, batch_first=True), torch.randn(3, 5, 8)
    with pytest.raises(ValueError, match=r"attn_mask has shape \(5, 4\); with 4 heads it is \(5, 5\)"):
        module(x, x, x, attn_mask=torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"with 4 heads it is \(12, 5, 5\)"):
        module(x, x, x, attn_mask=torch.zeros(24, 5, 5))
    with pytest.raises(ValueError, match="key_padding_mask has shape"):
        module(x, x, x, key_padding_mask=torch.zeros(1, 5))
    with pytest.raises(ValueError, match="is a hint"):
        module(x, x, x, is_causal=True)
    module.num_heads = 3
    with pytest.raises(ValueError, match=r"in_proj_weight has shape \(24, 8\); 3 heads of 2"):
        module.check()
