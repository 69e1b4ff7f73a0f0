"""Merging behind batch norms: units are what the norm makes of them, in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.model.norms import norms_behind, with_norms

SCALED = {7: (2, 2.0), 9: (2, 0.5), 11: (5, 3.0), 3: (0, 1.0)}
"""Copy -> original and factor."""
EQUAL = {copied: (original, 1.0) for copied, (original, _) in SCALED.items()}
PAIRS = {"cosine": SCALED, "srinivas_babu": EQUAL}


@torch.no_grad()
def random_norms(net: nn.Module) -> None:
    """Norms as a training leaves them; scales of both signs, which is more than a training does."""
    for norm in net.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(norm.weight) < 0.3, -1, 1))
                norm.bias.uniform_(-1, 1)


@torch.no_grad()
def plant(layer: Any, norm: Any, pairs: dict[int, tuple[int, float]]) -> None:
    """Copies whose weights, biases and norms differ, and whose rows behind the norm are multiples."""
    mean, var, eps = norm.running_mean, norm.running_var, norm.eps
    for copied, (original, factor) in pairs.items():
        own = 0.0 if layer.bias is None else layer.bias[original]
        scale = norm.weight[original] / (var[original] + eps).sqrt()
        offset = scale * (own - mean[original]) + norm.bias[original]
        times = float(torch.empty(()).uniform_(0.3, 2)) * (-1) ** copied
        layer.weight[copied] = times * layer.weight[original]
        norm.weight[copied] = factor * scale / times * (var[copied] + eps).sqrt()
        own = 0.0 if layer.bias is None else layer.bias[copied]
        norm.bias[copied] = factor * offset - factor * scale / times * (own - mean[copied])


class Block(nn.Module):
    def __init__(self, inputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, 12, 3, stride, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12)
        self.down = (
            nn.Sequential(nn.Conv2d(inputs, 12, 1, stride, bias=False), nn.BatchNorm2d(12)) if inputs != 12 else None
        )

    def forward(self, x: Tensor) -> Tensor:
        past = x if self.down is None else self.down(x)
        return F.relu(past + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.a, self.b, self.pool = Block(12, 1), Block(12, 1), nn.MaxPool2d(2)
        self.wide = nn.Sequential(nn.Conv2d(12, 16, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.c, self.head = Block(16, 2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.b(self.a(F.relu(self.bn(self.conv(x))))))
        return self.head(self.c(self.wide(x)).mean((2, 3)))


def pairs_of(net: ResNet) -> Iterator[tuple[Any, Any]]:
    """Of all groups of 12: inner channels and streams, whose producers each have a norm of their own."""
    yield net.conv, net.bn
    for block in (net.a, net.b, net.c):
        yield from ((block.conv1, block.bn1), (block.conv2, block.bn2))
    yield from [tuple(net.c.down)]


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


def chain(*between: nn.Module, bias: bool = True) -> tuple[Any, Tensor]:
    torch.manual_seed(1)
    net: Any = nn.Sequential(nn.Linear(6, 12, bias=bias), *between, nn.Linear(12, 3)).double().eval()
    random_norms(net)
    return net, torch.randn(7, 6).double()


def call(x: Tensor, criterion: str = "cosine") -> dict[str, Any]:
    return {"criterion": criterion, "unit": "channel", "example_inputs": x, "merge": True}


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


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.mark.parametrize("between", [(nn.BatchNorm1d(12),), (Scaled(),), (nn.PReLU(12),)])
def test_what_comes_later_has_to_treat_both_alike(between: tuple[nn.Module, ...]) -> None:
    """Behind the activation: the factors of the pair are equal, and a norm's offset is a multiple too."""
    net, x = chain(nn.ReLU(inplace=True), *between)
    with torch.no_grad():
        for parameter in between[0].parameters():
            parameter.uniform_(0.5, 2)
        for copied, (original, factor) in SCALED.items():
            net[0].weight[copied], net[0].bias[copied] = (
                factor * net[0].weight[original],
                factor * net[0].bias[original],
            )
            for name, tensor in between[0].state_dict().items():
                if tensor.dim():
                    times = factor if name in ("bias", "running_mean") else 1
                    tensor[copied] = times * tensor[original]
    whole = net(x)
    assert norms_behind(net, {name: group.layout() for name, group in sc.groups(net, x).items()}, x) == {}
    masks = sc.prune(net, 4 / 12, **call(x))
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-10)
    masks.undo()
    with torch.no_grad():
        first = next(between[0].parameters())
        first[0], first[3] = 1.0, 5.0
    whole = net(x)
    sc.prune(net, 1 / 12, **call(x))
    assert (net(x) - whole).abs().max() > 1e-3  # no multiples any more, and merged all the same


class Twice(nn.Module):
    """What a layer makes goes through its norm, and past it."""

    def __init__(self, past: bool) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.past = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 3), past

    def forward(self, x: Tensor) -> Tensor:
        made = self.a(x)
        read = self.b(F.relu(self.norm(made)))
        return read + self.b(F.relu(made)) if self.past else read + self.b(F.relu(self.norm(self.a(2 * x))))


@pytest.mark.parametrize("past", [False, True])
def test_a_layer_that_is_read_past_its_norm_is_refused_and_one_called_twice_is_not(past: bool) -> None:
    torch.manual_seed(2)
    net, x = Twice(past).double().eval(), torch.randn(7, 6).double()
    random_norms(net)
    plant(net.a, net.norm, SCALED)
    whole = net(x)
    if past:
        with pytest.raises(ValueError, match=r"units of 'a.weight' cannot take over.*exclude=\['a.weight'\]"):
            sc.prune(net, 4 / 12, **call(x))
        assert sc.find_masks(net) is None
    else:
        sc.prune(net, 4 / 12, **call(x))
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
