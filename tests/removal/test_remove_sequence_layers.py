"""Recurrent layers and attention: whatever is kept, all parts agree, or the plan is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from secateur.model.removal import Removal, remove

Kept = dict[str, dict[int, tuple[int, ...]]]


def without(size: int, *gone: int) -> tuple[int, ...]:
    return tuple(i for i in range(size) if i not in gone)


def rows(units: tuple[int, ...], size: int, gates: int) -> tuple[int, ...]:
    return tuple(g * size + u for g in range(gates) for u in units)


def recurrent_plan(layer: nn.RNNBase, units: tuple[int, ...], inputs: tuple[int, ...]) -> Kept:
    gates = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    both = [*units, *(layer.hidden_size + u for u in units)] if layer.bidirectional else units
    kept: Kept = {}
    for name, _ in layer.named_parameters():
        kept[name] = {0: rows(units, layer.hidden_size, gates)}
        if "weight_hh" in name:
            kept[name][1] = units
        elif "weight_ih" in name:
            kept[name][1] = inputs if "_l0" in name else tuple(both)
    return kept


def silence(layer: nn.RNNBase, gone: tuple[int, ...]) -> None:
    """No recurrent weight and no layer above reads the units that go."""
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            if "weight_hh" in name:
                weight[:, list(gone)] = 0
            elif "weight_ih" in name and "_l0" not in name:
                weight[:, list(gone)] = 0
                if layer.bidirectional:
                    weight[:, [layer.hidden_size + u for u in gone]] = 0


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_units(kind: type[nn.RNNBase], layers: int, bidirectional: bool) -> None:
    torch.manual_seed(0)
    layer = kind(3, 5, num_layers=layers, bidirectional=bidirectional, batch_first=True)
    silence(layer, (2, 4))
    x = torch.randn(2, 4, 3)
    x[..., 1] = 0
    units = (0, 1, 3)
    columns = [*units, *((5 + u for u in units) if bidirectional else ())]
    expected = layer(x)[0][..., columns]
    remove(layer, Removal(recurrent_plan(layer, units, (0, 2))))
    assert (layer.input_size, layer.hidden_size) == (2, 3)
    assert torch.allclose(layer(x[..., [0, 2]])[0], expected, atol=1e-6)
    assert all(flat is p for flat, p in zip(layer._flat_weights, layer.parameters(), strict=True))
    layer(x[..., [0, 2]])[0].sum().backward()


def test_the_rows_of_a_unit_are_those_of_the_catalogue() -> None:
    for kind, gone in ((nn.LSTM, {2, 7, 12, 17}), (nn.GRU, {2, 7, 12})):
        layer = kind(3, 5)
        old = layer.weight_ih_l0.detach().clone()
        kept = recurrent_plan(layer, without(5, 2), (0, 1, 2))
        assert set(range(len(old))) - set(kept["weight_ih_l0"][0]) == gone
        remove(layer, Removal(kept))
        assert torch.equal(layer.weight_ih_l0, old[[r for r in range(len(old)) if r not in gone]])


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projected_lstm() -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(3, 6, num_layers=2, proj_size=4)
    hidden, projected = (0, 2, 5), (1, 3)
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            if "weight_hr" in name:
                weight[:, [1, 3, 4]] = 0
            elif "weight_hh" in name or "weight_ih_l1" in name:
                weight[:, [0, 2]] = 0
    kept: Kept = {}
    for name, _ in layer.named_parameters():
        kept[name] = {0: rows(hidden, 6, 4)}
        if "weight_hh" in name or name == "weight_ih_l1":
            kept[name][1] = projected
        elif "weight_hr" in name:
            kept[name] = {0: projected, 1: hidden}
    x = torch.randn(4, 2, 3)
    expected = layer(x)[0][..., list(projected)]
    remove(layer, Removal(kept))
    assert (layer.hidden_size, layer.proj_size, layer.input_size) == (3, 2, 3)
    assert torch.allclose(layer(x)[0], expected, atol=1e-6)


def edit(kept: Kept, name: str, axes: dict[int, tuple[int, ...]]) -> Kept:
    return {**kept, name: axes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: edit(k, "weight_hh_l0", {0: (0, 1, 2, 3, 4, 5, 6, 7, 8), 1: (0, 1, 3)}), "9 rows, which are no 4"),
        (lambda k: edit(k, "bias_hh_l0", {0: rows((0, 1), 5, 4)}), "bias_hh_l0 says 2"),
        (
            lambda k: edit(k, "weight_hh_l0", {0: rows((0, 1, 3), 5, 4), 1: (0, 1)}),
            "the width of weight_hh would not be one number",
        ),
        (lambda k: edit(k, "bias_ih_l0", {0: (*rows((0, 1, 3), 5, 3), 15, 16, 17)}), "not the same units in each"),
        (lambda k: edit(k, "weight_ih_l0_reverse", {0: rows((0, 1, 3), 5, 4)}), "input_size would not be one number"),
        (
            lambda k: edit(k, "weight_ih_l1", {0: rows((0, 1, 3), 5, 4), 1: (0, 1)}),
            "the first layer would not be one",
        ),
    ],
)
def test_recurrent_layers_that_would_not_agree_are_refused(change: Callable[[Kept], Kept], message: str) -> None:
    layer = nn.LSTM(3, 5, num_layers=2, bidirectional=True)
    x = torch.randn(2, 1, 3)
    expected = layer(x)[0]
    with pytest.raises(ValueError, match=message):
        remove(layer, Removal(change(recurrent_plan(layer, (0, 1, 3), (0, 2)))))
    assert torch.equal(layer(x)[0], expected)


def test_a_projection_must_stay_the_smaller_size() -> None:
    layer = nn.LSTM(3, 4, proj_size=2)
    kept = {name: {0: rows((0, 1), 4, 4)} for name, _ in layer.named_parameters() if "hr" not in name}
    with pytest.raises(ValueError, match="proj_size 2 must stay smaller than hidden_size 2"):
        remove(layer, Removal({**kept, "weight_hr_l0": {1: (0, 1)}}))


def attention_plan(units: tuple[int, ...], width: int = 8) -> Kept:
    three = rows(units, width, 3)
    return {
        "in_proj_weight": {0: three, 1: units},
        "in_proj_bias": {0: three},
        "out_proj.weight": {0: units, 1: units},
        "out_proj.bias": {0: units},
    }


def by_hand(p: dict[str, Tensor], x: Tensor, units: tuple[int, ...], heads: int, width: int) -> Tensor:
    """Attention over some of the rows, spelled out."""
    at = list(units)
    split = [[*range(o * width, (o + 1) * width)] for o in range(3)]
    q, k, v = (x @ p["in_proj_weight"][r][at][:, at].T + p["in_proj_bias"][r][at] for r in split)
    out, size = torch.zeros_like(x), len(at) // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / size**0.5
        out[..., part] = scores.softmax(-1) @ v[..., part]
    return out @ p["out_proj.weight"][at][:, at].T + p["out_proj.bias"][at]


def test_attention_that_is_narrower_as_a_whole() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 4, batch_first=True)
    nn.init.normal_(layer.in_proj_bias)
    units = without(8, 2, 3)  # head 1: rows 2, 3, 10, 11, 18, 19 of the catalogue
    kept = attention_plan(units)
    assert set(range(24)) - set(kept["in_proj_weight"][0]) == {2, 3, 10, 11, 18, 19}
    old = {name: tensor.detach().clone() for name, tensor in layer.state_dict().items()}
    remove(layer, Removal(kept, {"": {"num_heads": 3}}))
    assert (layer.embed_dim, layer.num_heads, layer.head_dim, layer.kdim, layer.vdim) == (6, 3, 2, 6, 6)
    assert layer.out_proj.in_features == layer.out_proj.out_features == 6
    x = torch.randn(2, 5, 6)
    assert torch.allclose(layer(x, x, x)[0], by_hand(old, x, units, 3, 8), atol=1e-6)


def test_attention_with_other_widths_of_keys_and_values() -> None:
    layer = nn.MultiheadAttention(8, 2, kdim=5, vdim=3, add_bias_kv=True, batch_first=True)
    units = (0, 1, 4, 5)
    kept = {name: {0: units} for name in ("k_proj_weight", "v_proj_weight", "out_proj.bias")}
    kept |= {name: {0: units, 1: units} for name in ("q_proj_weight", "out_proj.weight")}
    kept |= {"in_proj_bias": {0: rows(units, 8, 3)}, "bias_k": {2: units}, "bias_v": {2: units}}
    kept["k_proj_weight"] = {0: units, 1: (0, 4)}
    remove(layer, Removal(kept))
    assert (layer.embed_dim, layer.kdim, layer.vdim, layer.head_dim) == (4, 2, 3, 2)
    assert layer(torch.randn(1, 5, 4), torch.randn(1, 6, 2), torch.randn(1, 6, 3))[0].shape == (1, 5, 4)


@pytest.mark.parametrize(
    ("kept", "given", "message"),
    [
        (
            {n: a for n, a in attention_plan(without(8, 2, 3)).items() if "in" in n and n != "in_proj_weight"}
            | {"in_proj_weight": {0: rows(without(8, 2, 3), 8, 3)}, "out_proj.weight": {1: without(8, 2, 3)}},
            3,
            "its heads together are as wide as its output. To remove heads alone",
        ),
        (attention_plan((0, 1, 4, 5, 6, 7)), None, "a width of 6 is no 4 equal heads; keep a multiple of 4, or give"),
        (edit(attention_plan((0, 1, 4, 5)), "out_proj.bias", {}), None, r"bias would be \(8,\)"),
        ({"out_proj.weight": {0: (0, 1)}, "out_proj.bias": {0: (0, 1)}}, None, "torch asks for"),
    ],
)
def test_what_torch_attention_cannot_be_is_refused(kept: Kept, given: int | None, message: str) -> None:
    layer = nn.MultiheadAttention(8, 4, batch_first=True)
    x = torch.randn(1, 3, 8)
    expected = layer(x, x, x)[0]
    with pytest.raises(ValueError, match=message):
        remove(layer, Removal(kept, {} if given is None else {"": {"num_heads": given}}))
    assert torch.equal(layer(x, x, x)[0], expected)
