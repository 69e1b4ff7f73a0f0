"""Opening attention changes one thing and carries everything else over, or changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.deploy.attention import Attention, fold_value_bias, open_attention
from secateur.measure.count import count
from tests.oracles.removal import zeroed
from tests.removal.attention_net import HEAD_ONE, Around, near, unsettled


def test_everything_is_carried_over() -> None:
    net = nn.Sequential(Around(dropout=0.5), Around()).double()
    first = net[0].attention
    net[1].attention.in_proj_weight = first.in_proj_weight
    first.in_proj_bias.requires_grad_(False)
    first.train()
    net[1].eval()
    calls: list[str] = []
    handle = first.register_forward_hook(lambda *_: calls.append("forward"))
    first.register_load_state_dict_pre_hook(lambda module, *_: calls.append(type(module).__name__))
    first.out_proj.weight.register_hook(lambda _: calls.append("gradient"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    before, names = dict(net.named_parameters()), list(net.state_dict())
    assert open_attention(net, inplace=True) is net
    opened = net[0].attention
    assert type(opened) is Attention
    assert list(net.state_dict()) == names
    assert all(before[name] is parameter for name, parameter in net.named_parameters())
    assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, net.parameters()))
    assert net[1].attention.in_proj_weight is opened.in_proj_weight
    assert (opened.training, net[1].attention.training, opened.dropout) == (True, False, 0.5)
    net[0](torch.randn(2, 3, 5).double()).sum().backward()
    assert calls == ["forward", "gradient"]
    handle.remove()
    net[0](torch.randn(2, 3, 5).double())
    net.load_state_dict(net.state_dict())
    assert calls == ["forward", "gradient", "Attention"]
    assert opened.in_proj_bias.grad is None
    again = open_attention(net)
    assert again is not net
    assert again[1].attention.in_proj_weight is again[0].attention.in_proj_weight


def test_one_module_under_two_names_stays_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.MultiheadAttention(8, 2)
            self.list = nn.ModuleList([self.one])

    opened = open_attention(Twice())
    assert opened.one is opened.list[0]
    assert type(opened.one) is Attention


def test_it_survives_what_models_go_through() -> None:
    net, x = unsettled(Around()), torch.randn(2, 6, 5)
    small = sc.shrink(open_attention(net), example_inputs=x, unit="head", units={"attention.in_proj_weight": [0, 2]})
    twin = copy.deepcopy(small)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(small.state_dict(), strict=True)
    assert near(twin(x), small(x))
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(small, (x,), dynamic_shapes=({0: batch},))
    x = torch.randn(7, 6, 5)
    assert near(exported.module()(x), small(x))
    small.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_a_folded_bias_stays_behind_the_head() -> None:
    net, x = unsettled(Around()), torch.randn(2, 6, 5)
    folded = open_attention(net, fold=True)
    assert near(folded(x), net(x))
    assert not folded.attention.in_proj_bias[16:].any()  # type: ignore[union-attr]
    small = sc.shrink(folded, example_inputs=x, unit="head", units={"attention.in_proj_weight": [1]})
    deaf = zeroed(net, [("attention.in_proj_weight", 0, [18, 19])])  # its bias is still there: a constant
    assert near(small(x), deaf(x))
    assert not near(small(x), zeroed(net, HEAD_ONE)(x), 1e-3)


def test_what_cannot_be_opened_or_folded_is_refused_before_anything_changes() -> None:
    class Own(nn.MultiheadAttention):
        pass

    plain = nn.MultiheadAttention(8, 2)
    normed = nn.utils.parametrizations.weight_norm(nn.MultiheadAttention(8, 2), "in_proj_weight")
    net = nn.ModuleDict({"plain": plain, "own": Own(8, 2), "normed": normed})
    for targets, message in (
        (None, "own .Own. computes in its own way"),
        ("nor*", "normed .Param"),
        ("no", "no attention; there"),
    ):
        with pytest.raises(ValueError, match=message):
            open_attention(net, targets=targets, inplace=True)
    half = nn.utils.prune.random_unstructured(nn.MultiheadAttention(8, 2), "in_proj_weight", 0.5)
    with pytest.raises(ValueError, match=r"has \['in_proj_weight_mask', 'in_proj_weight_orig'\] beside torch's own"):
        open_attention(half)
    with pytest.raises(ValueError, match="take the result"):
        open_attention(plain, inplace=True)
    with pytest.raises(ValueError, match="no bias to fold"):
        open_attention(nn.MultiheadAttention(8, 2, bias=False), fold=True)
    with pytest.raises(ValueError, match="key and value of its own"):
        open_attention(nn.MultiheadAttention(8, 2, add_bias_kv=True), fold=True)
    tied = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)])
    tied[0].in_proj_bias = tied[1].in_proj_bias
    with pytest.raises(ValueError, match="shares a bias"):
        open_attention(tied, fold=True, inplace=True)
    with pytest.raises(ValueError, match=r"no nn\.MultiheadAttention"):
        open_attention(nn.Linear(2, 2))
    assert [type(part) for part in (net["plain"], *tied)] == [nn.MultiheadAttention] * 3
    assert type(open_attention(net, targets="pl*", inplace=True)["plain"]) is Attention  # type: ignore[index]
    with pytest.raises(ValueError, match="no bias to fold"):
        fold_value_bias(Attention(8, 2, bias=False))


def test_what_masks_and_counts_look_at_stays() -> None:
    net, x = unsettled(Around()), torch.randn(1, 6, 5)
    opened = open_attention(net)
    assert list(sc.prune(opened, 0.5, inplace=False)[1]) == list(sc.prune(net, 0.5, inplace=False)[1])
    whole, same = count(net, x), count(opened, x)
    assert (same.macs, same.parameters) == (whole.macs, whole.parameters) == (2496, 363)
    small = sc.shrink(opened, example_inputs=x, unit="head", units={"attention.in_proj_weight": [1]})
    assert count(small, x).macs == 2496 - 6 * (6 * 8 + 2 * 8) - 2 * 6 * 6 * 2
