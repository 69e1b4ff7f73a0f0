"""SynFlow, and pruning in rounds, through ``sc.score`` and ``sc.prune``, against slow float64 oracles written here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from tests.train.initial_nets import F64, points, small


def positive_net(depth: int = 3, width: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(2, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3, bias=False))


def test_the_flow_through_every_layer_is_the_same() -> None:
    net = positive_net()
    with torch.no_grad():
        net[1].weight.mul_(-0.5)  # absolute value of the norm's scale
    found = sc.score(net, "synflow", example_inputs=torch.zeros(8, 2, 6, 6))
    oracle = copy.deepcopy(net).double().eval()
    for tensor in oracle.parameters():
        tensor.data.abs_()
    total = float(oracle(torch.ones(1, 2, 6, 6, dtype=F64)).detach().sum())
    assert len(found) == 5
    for name, scores in found.items():
        assert scores.dtype == F64
        assert float(scores.sum()) == pytest.approx(total, rel=1e-9), name
        assert bool((scores >= 0).all())


def test_a_deep_network_in_single_precision_does_not_overflow() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(40, 40, bias=False) for _ in range(120)])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(10)
    found = sc.score(net, "synflow")
    sums = torch.stack([scores.sum() for scores in found.values()])
    assert float(sums[0]) > torch.finfo(torch.float32).max
    torch.testing.assert_close(sums, sums[:1].expand(120))


def test_a_forward_that_fails_leaves_the_weights_alone() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no " + str(bool((self.fc.weight >= 0).all())))

    net = Broken()
    before = net.fc.weight.detach().clone()
    with pytest.raises(ValueError, match="no True"):
        sc.prune(net, 0.5, criterion="synflow")
    assert torch.equal(net.fc.weight, before)
    assert sc.find_masks(net) is None


def test_the_shape_of_the_inputs_comes_from_examples_or_data_or_a_linear_layer() -> None:
    net = positive_net()
    with pytest.raises(ValueError, match=r"give example_inputs="):
        sc.score(net, "synflow")
    by_example = sc.score(net, "synflow", example_inputs=torch.randn(2, 2, 6, 6))
    by_data = sc.score(net, "synflow", data=[(torch.randn(9, 2, 6, 6), torch.zeros(9))])
    assert all(torch.equal(scores, by_data[name]) for name, scores in by_example.items())


def test_tokens_stay_as_they_are_and_tuples_and_logits_are_read() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(5, 3), nn.Linear(3, 2, bias=False)

        def forward(self, ids: Tensor) -> tuple[Tensor, str]:
            return self.fc(self.table(ids)), "more"

    net, ids = Words(), torch.tensor([[4, 1], [0, 0]])
    found = sc.score(net, "synflow", example_inputs=ids)["fc.weight"]
    reads = net.table.weight.detach().double().abs()[ids[0]].sum(0)
    torch.testing.assert_close(found, (net.fc.weight.detach().double().abs() * reads))
    net.forward = lambda ids: {"a": 1}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="adds up a tensor"):
        sc.score(net, "synflow", example_inputs=ids)


def test_synflow_in_rounds_against_a_loop_written_out() -> None:
    net, sparsity, rounds = positive_net(depth=1, width=4), 0.9, 7
    oracle = copy.deepcopy(net).double().eval()
    weights = {name: p.data.abs() for name, p in oracle.named_parameters() if p.dim() > 1}
    kept = {name: torch.ones_like(w) for name, w in weights.items()}
    total = sum(w.numel() for w in weights.values())
    for k in range(1, rounds + 1):
        leaves = {name: (w * kept[name]).requires_grad_() for name, w in weights.items()}
        out = torch.func.functional_call(oracle, leaves, (torch.ones(1, 2, 6, 6, dtype=F64),)).sum()
        slopes = torch.autograd.grad(out, list(leaves.values()))
        flat = torch.cat([(s * w).detach().flatten() for s, w in zip(slopes, leaves.values(), strict=True)])
        gone = torch.cat([mask.flatten() == 0 for mask in kept.values()])
        order = torch.where(gone, -1.0, flat).argsort(stable=True)
        mask = torch.ones(total, dtype=F64)
        mask[order[: int((1 - (1 - sparsity) ** (k / rounds)) * total + 0.5)]] = 0
        pieces = mask.split([w.numel() for w in weights.values()])
        kept = {name: piece.view_as(weights[name]) for name, piece in zip(weights, pieces, strict=True)}
    masks = sc.prune(
        net, sparsity, criterion="synflow", rounds=rounds, example_inputs=torch.zeros(1, 2, 6, 6), min_density=None
    )
    assert all(torch.equal(masks[name], kept[name].bool()) for name in kept)


def by_hand(net: nn.Sequential, sparsity: float, rounds: int, regrow: bool) -> tuple[list[Tensor], int]:
    """Masks after all rounds, and how many weights ever returned."""
    (x, y), layers = points(), [net[0], net[2], net[4]]
    dense = [layer.weight.detach().clone() for layer in layers]
    kept, total = [torch.ones_like(w) for w in dense], sum(w.numel() for w in dense)
    returned = 0
    for k in range(1, rounds + 1):
        products = [(m * w).requires_grad_() for m, w in zip(kept, dense, strict=True)]
        h = x
        for at, (layer, product) in enumerate(zip(layers, products, strict=True)):
            h = F.linear(h, product, layer.bias.detach())
            h = h.tanh() if at < 2 else h
        slopes = torch.autograd.grad(F.cross_entropy(h, y), products)
        reach = dense if regrow else [p.detach() for p in products]
        flat = torch.cat([(w * s).abs().flatten() for w, s in zip(reach, slopes, strict=True)])
        if not regrow:
            flat[torch.cat([m.flatten() == 0 for m in kept])] = -1
        mask = torch.ones(total, dtype=F64)
        mask[flat.argsort(stable=True)[: int((1 - (1 - sparsity) ** (k / rounds)) * total + 0.5)]] = 0
        new = [piece.view_as(w) for piece, w in zip(mask.split([w.numel() for w in dense]), dense, strict=True)]
        returned += sum(int(((n > 0) & (m == 0)).sum()) for n, m in zip(new, kept, strict=True))
        kept = new
    return [mask.bool() for mask in kept], returned


@pytest.mark.parametrize(("criterion", "regrow"), [("force", True), ("iter_snip", False)])
def test_force_and_iterative_snip_against_loops_written_out(criterion: str, regrow: bool) -> None:
    net = small()
    expected, returned = by_hand(small(), 0.9, 10, regrow)
    assert (returned > 0) == regrow, "the network has to tell the two apart"
    masks = sc.prune(net, 0.9, criterion=criterion, data=points(), loss=F.cross_entropy, min_density=None)
    assert all(torch.equal(mask, found) for mask, found in zip(expected, masks.values(), strict=True))
    masks.undo()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), small().parameters(), strict=True))


def test_force_and_iterative_snip_differ() -> None:
    assert any(
        not torch.equal(one, other)
        for one, other in zip(by_hand(small(), 0.9, 10, True)[0], by_hand(small(), 0.9, 10, False)[0], strict=True)
    )


def test_rounds_go_on_from_the_masks_there_are() -> None:
    net = small()
    first = sc.prune(net, 0.5, criterion="magnitude")
    gone = {name: ~mask for name, mask in first.items()}
    for criterion in ("force", "synflow"):
        masks = sc.prune(net, 0.8, criterion=criterion, data=points(), loss=F.cross_entropy)
        assert all(not bool((masks[name] & gone[name]).any()) for name in gone)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(masks.kept(name) for name in masks) == total - int(0.8 * total + 0.5)


def test_a_round_that_fails_puts_the_weights_back() -> None:
    net, (x, y) = small(), points()
    before = copy.deepcopy(net.state_dict())
    calls = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("third round")
        return F.cross_entropy(output, target)

    with pytest.raises(RuntimeError, match="third round"):
        sc.prune(net, 0.9, criterion="force", data=(x, y), loss=loss)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_any_criterion_takes_rounds_and_patterns_do_not() -> None:
    one, many = small(), small()
    given: dict[str, Any] = {"criterion": "snip", "data": points(), "loss": F.cross_entropy}
    sc.prune(one, 0.9, **given)
    masks = sc.prune(many, 0.9, rounds=10, **given)
    assert any(not torch.equal(masks[name], sc.find_masks(one)[name]) for name in masks)  # type: ignore[index]
    for criterion in ("synflow", "force"):
        masks = sc.prune(small(), unit="2 of 4", criterion=criterion, data=points(), loss=F.cross_entropy)
        assert masks["2.weight"].reshape(8, 3, 4).sum(2).eq(2).all()
    with pytest.raises(ValueError, match="is reached at once"):
        sc.prune(small(), unit="2 of 4", criterion="synflow", rounds=5)
    with pytest.raises(ValueError, match="a whole number from 1"):
        sc.prune(small(), 0.5, rounds=0)


def test_a_removed_channel_never_returns() -> None:
    """What makes it and what reads it are masked together: neither has a gradient, so both criteria agree."""
    found = []
    for criterion in ("force", "iter_snip"):
        net = positive_net()
        x, y = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
        given: dict[str, Any] = {"example_inputs": x[:2], "data": (x, y), "loss": F.cross_entropy}
        masks = sc.prune(net, 0.6, criterion=criterion, unit="channel", **given)
        found.append({name: masks[name] for name in masks})
    assert all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())
    one_shot = sc.prune(positive_net(), 0.6, criterion="snip", unit="channel", **given)
    assert any(not torch.equal(mask, one_shot[name]) for name, mask in found[0].items()), "the rounds change something"


def test_channels_in_rounds_and_in_a_pruner() -> None:
    x = torch.randn(4, 6, dtype=F64)
    masks = sc.prune(small(), 0.5, criterion="synflow", unit="channel", example_inputs=x)
    assert sum(int(mask.sum()) for mask in masks.unit_masks.values()) == 10
    net = small()
    pruner = sc.Pruner(net, sc.Plan(0.9, criterion="synflow"))
    pruner.attach(torch.optim.SGD(net.parameters(), 0.1))
    expected = sc.prune(small(), 0.9, criterion="synflow")
    assert all(torch.equal(mask, expected[name]) for name, mask in pruner.masks.items())


def test_rounds_of_a_plan_are_those_of_each_update_of_a_pruner() -> None:
    net, one, many = small(), small(), small()
    given: dict[str, Any] = {"data": points(), "loss": F.cross_entropy}
    pruner = sc.Pruner(net, sc.Plan(0.9, criterion="snip", rounds=6), **given)
    pruner.attach(torch.optim.SGD(net.parameters(), 0.1))
    expected = sc.prune(many, 0.9, criterion="snip", rounds=6, **given)
    assert all(torch.equal(mask, expected[name]) for name, mask in pruner.masks.items())
    at_once = sc.prune(one, 0.9, criterion="snip", **given)
    assert any(not torch.equal(at_once[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("criterion", "unit", "kinds"), [("snip", "weight", "grad_abs"), ("apoz", "filter", "zeros")])
def test_rounds_in_a_training_need_data_to_read_anew(criterion: str, unit: str, kinds: str) -> None:
    net, plan = small(), sc.Plan(0.9, criterion=criterion, unit=unit, begin=3, rounds=6)
    with pytest.raises(
        ValueError, match=rf"rounds=6 in the plan.*{kinds} comes from the training.*give the Pruner data="
    ):
        sc.Pruner(net, plan)
    assert sc.find_masks(net) is None
    sc.Pruner(small(), sc.Plan(0.9, criterion=criterion, unit=unit, begin=3, rounds=1))
    sc.Pruner(small(), plan, data=points(), loss=F.cross_entropy)
