"""Merging behind batch norms: units are what the norm makes of them, in eval mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.model.norms import norms_behind, with_norms
from tests.train.normed_nets import EQUAL, PAIRS, SCALED, ResNet, call, chain, pairs_of, plant, random_norms


@pytest.mark.parametrize("criterion", ["cosine", "srinivas_babu"])
@pytest.mark.parametrize("training", [False, True])
def test_a_residual_network_gives_up_what_was_planted_and_computes_the_same(criterion: str, training: bool) -> None:
    torch.manual_seed(0)
    net, x = ResNet().double(), torch.randn(4, 2, 8, 8).double()
    random_norms(net)
    for layer, norm in pairs_of(net):
        plant(layer, norm, PAIRS[criterion])
    whole = net.eval()(x)
    net.train(training)
    targets = ["conv", "a.conv1", "b.conv1", "c.conv1", "c.conv2"]  # all but wide
    options: dict[str, Any] = {"criterion": criterion, "unit": "channel", "example_inputs": x, "targets": targets}
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    plain, _ = sc.prune(net, 4 / 12, inplace=False, **options)
    masks = sc.prune(net, 4 / 12, merge=True, **options)
    assert len(masks.unit_masks) == 5
    for name, kept in masks.unit_masks.items():
        assert int(kept.sum()) == 8, name
        assert int(kept[[2, 7, 9]].sum()) == int(kept[[5, 11]].sum()) == int(kept[[0, 3]].sum()) == 1, name
    assert net.training == training
    net.eval()
    assert torch.allclose(net(x), whole, rtol=0, atol=1e-9)
    assert (plain.eval()(x) - whole).abs().max() > 1e-2  # without merging something is lost
    small = sc.shrink(net, example_inputs=x)
    assert small.a.conv1.weight.shape[:2] == (8, 8)
    assert torch.allclose(small(x), whole, rtol=0, atol=1e-9)
    masks.undo()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


LAYERS: list[tuple[nn.Module, nn.Module, Tensor]] = [
    (nn.Linear(6, 12), nn.BatchNorm1d(12), torch.randn(5, 6)),
    (nn.Linear(6, 12, bias=False), nn.BatchNorm1d(12, affine=False), torch.randn(5, 6)),
    (nn.Conv1d(6, 12, 1), nn.BatchNorm1d(12, eps=0.1), torch.randn(5, 6, 1)),
    (nn.ConvTranspose1d(6, 12, 1), nn.SyncBatchNorm(12), torch.randn(5, 6, 1)),
]


@pytest.mark.parametrize(("layer", "norm", "x"), LAYERS)
def test_rows_compute_what_layer_and_norm_compute(layer: Any, norm: Any, x: Tensor) -> None:
    last = nn.Conv1d(12, 2, 1) if x.dim() == 3 else nn.Linear(12, 2)
    net, x = nn.Sequential(layer, norm, nn.ReLU(), last).double().eval(), x.double()
    random_norms(net)
    (layout,) = [{"0.weight": group.layout()} for group in sc.groups(net, x).values()]
    behind = norms_behind(net, layout, x)
    assert behind == {"0.weight": "1"}
    biases = {} if layer.bias is None else {"0.bias": layer.bias.detach()}
    found = with_norms(net, layout, {"weight": {"0.weight": layer.weight.detach()}, "bias": biases}, behind)
    rows = found["weight"]["0.weight"].flatten(2).squeeze(2) if x.dim() == 3 else found["weight"]["0.weight"]
    rows = rows.T if isinstance(layer, nn.ConvTranspose1d) else rows
    assert list(found["bias"]) == ["0.weight"]
    made = x.flatten(1) @ rows.T + found["bias"]["0.weight"].flatten()
    torch.testing.assert_close(made, norm(layer(x)).flatten(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("criterion", ["cosine", "srinivas_babu"])
def test_a_norm_without_scales(criterion: str) -> None:
    net, x = chain(nn.BatchNorm1d(12, affine=False), nn.ReLU(), bias=False)
    mean, var, eps = net[1].running_mean, net[1].running_var, net[1].eps
    with torch.no_grad():
        for copied, (original, factor) in PAIRS[criterion].items():
            times = factor * float((var[copied] + eps).sqrt() / (var[original] + eps).sqrt())
            net[0].weight[copied], mean[copied] = times * net[0].weight[original], times * mean[original]
    whole = net(x)
    sc.prune(net, 4 / 12, **call(x, criterion))
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-10)


def test_the_heir_of_a_unit_that_is_no_multiple_is_the_nearest_behind_the_norm() -> None:
    net, x = chain(nn.BatchNorm1d(12), nn.ReLU())
    scale = net[1].weight / (net[1].running_var + net[1].eps).sqrt()
    shift = scale * (net[0].bias - net[1].running_mean) + net[1].bias
    rows = torch.cat([scale[:, None] * net[0].weight, shift[:, None]], 1).detach()
    before = net[3].weight.detach().clone()
    kept = sc.prune(net, 3 / 12, **call(x)).unit_masks["0.weight"]
    raw = torch.cat([net[0].weight, net[0].bias[:, None]], 1).detach()
    expected, others = before.clone(), 0
    for gone in (~kept).nonzero().flatten().tolist():
        near = F.cosine_similarity(rows, rows[gone : gone + 1]).masked_fill(~kept, -2)
        heir = int(near.argmax())
        assert near[heir] > 0
        expected[:, heir] += rows[gone].norm() / rows[heir].norm() * before[:, gone]
        others += heir != int(F.cosine_similarity(raw, raw[gone : gone + 1]).masked_fill(~kept, -2).argmax())
    torch.testing.assert_close(net[3].weight[:, kept], expected[:, kept])
    assert others


def test_which_pairs_are_near_is_asked_behind_the_norm_where_units_are_merged() -> None:
    net, x = chain(nn.BatchNorm1d(12), nn.ReLU())
    with torch.no_grad():
        net[0].weight[4], net[0].bias[4] = net[0].weight[1], net[0].bias[1]  # alike before the norm, not behind it
        net[1].weight[4] = -net[1].weight[1]
    plant(net[0], net[1], {7: (2, 1.0)})  # the other way round
    whole = net(x)
    for merge, pair in ((False, [1, 4]), (True, [2, 7])):
        options = {**call(x, "srinivas_babu"), "merge": merge}
        pruned, masks = sc.prune(net, 1 / 12, inplace=False, **options)
        assert int((~masks.unit_masks["0.weight"]).nonzero()) in pair
        assert torch.allclose(pruned(x), whole, rtol=0, atol=1e-9) == merge


@torch.no_grad()
def test_a_norm_over_positions_is_no_norm_of_the_channels() -> None:
    net, _ = chain(nn.BatchNorm1d(12), nn.ReLU())
    x = torch.randn(5, 12, 6).double()  # 12 positions, and 12 channels by chance
    for copied, (original, _) in EQUAL.items():
        net[0].weight[copied], net[0].bias[copied] = net[0].weight[original], net[0].bias[original]
    whole = net(x)
    sc.prune(net, 4 / 12, **call(x, "srinivas_babu"))
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-10)


def test_a_depthwise_layer_between_gives_equal_units_up_and_refuses_multiples() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12))
    net.extend([nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 3, 1)])
    net, x = net.double().eval(), torch.randn(3, 2, 6, 6).double()
    random_norms(net)
    for layer, norm in ((net[0], net[1]), (net[3], net[4])):
        plant(layer, norm, EQUAL)
    whole = net(x)
    with pytest.raises(ValueError, match="cannot take over"):
        sc.prune(net, 4 / 12, **call(x))
    sc.prune(net, 4 / 12, **call(x, "srinivas_babu"))
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rounds", [1, 3])
def test_in_several_calls_and_rounds(rounds: int) -> None:
    net, x = chain(nn.BatchNorm1d(12), nn.ReLU())
    plant(net[0], net[1], SCALED)
    whole, state = net(x), {name: tensor.clone() for name, tensor in net.state_dict().items()}
    sc.prune(net, 2 / 12, **call(x))
    masks = sc.prune(net, 4 / 12, rounds=rounds, **call(x))
    assert int(masks.unit_masks["0.weight"].sum()) == 8
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-10)
    masks.undo()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
