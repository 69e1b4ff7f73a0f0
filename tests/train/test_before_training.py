"""Pruning before training, through ``sc.score`` and ``sc.prune``, against slow float64 oracles written here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from tests.train.initial_nets import F64, batches, conv_net, points, small

CRITERIA = ["grasp", "synflow", "force", "iter_snip", "prospr", "fisher"]


def test_grasp_is_weight_times_hessian_times_gradient() -> None:
    net, data = conv_net(), batches(2)
    found = sc.score(net, "grasp(temperature=3.0)", data=data, loss=F.cross_entropy, batches=2)
    names, oracle = list(found), conv_net().eval()
    sizes = [found[name].numel() for name in names]
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        tensors = {name: part.view_as(found[name]) for name, part in zip(names, parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(oracle, tensors, (x,)) / 3.0, y)

    flat = torch.cat([oracle.get_parameter(name).detach().flatten() for name in names])
    hessian = torch.autograd.functional.hessian(loss, flat)
    gradient = torch.autograd.functional.jacobian(loss, flat)
    expected = flat * (hessian @ gradient)
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in names]), expected)
    assert bool((expected < 0).any())
    assert bool((expected > 0).any())


def test_grasp_tempers_what_the_loss_reads_and_nothing_else_can_be() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.fc(x)}

    batch = {"x": torch.randn(4, 3)}
    with pytest.raises(ValueError, match="GraSP divides logits by a temperature; give step="):
        sc.score(Named(), "grasp", data=[batch], loss=lambda output, batch: output["logits"].sum())
    with pytest.raises(ValueError, match="give a number above 0"):
        sc.score(nn.Linear(3, 2), "grasp(temperature=0)", data=(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])),
                 loss=F.cross_entropy)  # fmt: skip


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nothing_is_left_behind(criterion: str, mode: Any) -> None:
    net = conv_net().train()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    sc.score(net, criterion, data=batches(4), loss=F.cross_entropy, mode=mode)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert net[3].weight.grad is None
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


# -- ProsPr ---------------------------------------------------------------------------------------------------


def loss_behind(net: nn.Sequential, data: list[Any], scale: Tensor, lr: float, momentum: float) -> float:
    """Plain SGD on a copy whose first layer's weights are scaled."""
    one = copy.deepcopy(net).eval()
    one[0].weight.data *= scale
    moving = [torch.zeros_like(p) for p in one.parameters()]
    for x, y in data[:-1]:
        slopes = torch.autograd.grad(F.cross_entropy(one(x), y), list(one.parameters()))
        for p, v, g in zip(one.parameters(), moving, slopes, strict=True):
            v.mul_(momentum).add_(g)
            p.data -= lr * v
    return float(F.cross_entropy(one(data[-1][0]), data[-1][1]).detach())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_prospr_is_the_slope_of_the_loss_behind_the_steps(momentum: float) -> None:
    net, data, lr = conv_net(norm=False), batches(4), 0.5
    options: dict[str, Any] = {"data": data, "loss": F.cross_entropy}
    found = sc.score(net, f"prospr(lr={lr}, momentum={momentum})", **options)["0.weight"]
    eps = 1e-5
    for place in [(0, 0, 0, 0), (3, 1, 2, 2), (2, 0, 1, 1)]:
        up, down = torch.ones_like(net[0].weight), torch.ones_like(net[0].weight)
        up[place], down[place] = 1 + eps, 1 - eps
        slope = loss_behind(net, data, up, lr, momentum) - loss_behind(net, data, down, lr, momentum)
        assert float(found[place]) == pytest.approx(abs(slope) / (2 * eps), rel=1e-5, abs=1e-9)
    gates = sc.score(net, f"prospr_gate(lr={lr}, momentum={momentum})", unit="filter", **options)["0.weight"]
    for unit in range(4):
        up, down = torch.ones_like(net[0].weight), torch.ones_like(net[0].weight)
        up[unit], down[unit] = 1 + eps, 1 - eps
        slope = loss_behind(net, data, up, lr, momentum) - loss_behind(net, data, down, lr, momentum)
        assert float(gates[unit]) == pytest.approx(abs(slope) / (2 * eps), rel=1e-5, abs=1e-9)


def test_prospr_first_order_leaves_the_steps_out_of_the_slope() -> None:
    net, (x, y) = small(), points()
    full = sc.score(net, "prospr", data=(x, y), loss=F.cross_entropy)["0.weight"]
    first = sc.score(net, "prospr(first_order=True)", data=(x, y), loss=F.cross_entropy)["0.weight"]
    moved = copy.deepcopy(net)
    for _ in range(3):
        slopes = torch.autograd.grad(F.cross_entropy(moved(x), y), list(moved.parameters()))
        for p, g in zip(moved.parameters(), slopes, strict=True):
            p.data -= 0.1 * g
    (slope,) = torch.autograd.grad(F.cross_entropy(moved(x), y), [moved[0].weight])
    torch.testing.assert_close(first, (net[0].weight * slope).abs().detach())
    assert not torch.allclose(full, first, rtol=1e-3)


@pytest.mark.parametrize("spec", ["prospr(lr=0)", "prospr(momentum=1.0)", "prospr_gate(lr=-1.0)"])
def test_prospr_refuses_steps_that_do_not_move(spec: str) -> None:
    with pytest.raises(ValueError, match="lr above 0"):
        sc.score(small(), spec, unit="filter", data=points(), loss=F.cross_entropy)
    with pytest.raises(ValueError, match="one batch for each step"):
        sc.score(small(), "prospr", data=points(), loss=F.cross_entropy, batches=1)


# -- Fisher ---------------------------------------------------------------------------------------------------


def fisher_by_hand(net: nn.Module, data: list[tuple[Tensor, Tensor]], name: str) -> Tensor:
    total, count = torch.zeros_like(net.get_parameter(name)), 0
    for x, y in data:
        for row in range(len(x)):
            loss = F.cross_entropy(net(x[row : row + 1]), y[row : row + 1])
            (slope,) = torch.autograd.grad(loss, [net.get_parameter(name)])
            total, count = total + slope.square(), count + 1
    return total / count


def test_fisher_is_of_single_samples() -> None:
    net, data = conv_net(), [*batches(2), *batches(1, rows=3)]
    found = sc.score(net, "fisher", data=data, loss=F.cross_entropy, batches=3)
    oracle = conv_net().eval()
    for name, scores in found.items():
        expected = oracle.get_parameter(name).detach().square() * fisher_by_hand(oracle, data, name)
        torch.testing.assert_close(scores, expected)
    whole = sc.score(net, "taylor", data=data, loss=F.cross_entropy, batches=3)
    assert not torch.allclose(whole["0.weight"], found["0.weight"], rtol=0.1), (
        "squares of a batch's mean are another thing"
    )


def test_samples_of_ordinary_networks_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(*_: Any) -> Any:
        raise AssertionError("one sample at a time")

    monkeypatch.setattr("secateur.model.evidence.samples._one", one)
    sc.score(conv_net(), "fisher", data=batches(1), loss=F.cross_entropy)
    with pytest.raises(AssertionError, match="one sample at a time"):
        sc.score(Branching(), "fisher", data=points(), loss=F.cross_entropy)


class Branching(nn.Module):
    """A branch on data, which cannot be run for many samples at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 3, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if float(x.sum()) > 0 else 2 * self.fc(x)


def test_fisher_of_models_that_go_one_by_one_is_the_same() -> None:
    net, (x, y) = Branching(), points()
    found = sc.score(net, "fisher", data=(x, y), loss=F.cross_entropy)["fc.weight"]
    expected = net.fc.weight.detach().square() * fisher_by_hand(net, [(x, y)], "fc.weight")
    torch.testing.assert_close(found, expected)
    named = sc.score(net, "fisher", data=[{"x": x, "y": y}], step=lambda m, b: F.cross_entropy(m(b["x"]), b["y"]))
    torch.testing.assert_close(named["fc.weight"], expected)


def test_a_batch_that_has_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be taken apart into samples"):
        sc.score(small(), "fisher", data=[[points()[0], "label"]], step=lambda m, b: m(b[0]).sum())


def test_generators_are_read_once() -> None:
    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(3):
            yield points()

    for criterion in ("grasp", "prospr", "fisher"):
        again = sc.score(small(), criterion, data=stream(), loss=F.cross_entropy)
        once = sc.score(small(), criterion, data=[points()], loss=F.cross_entropy)
        for name, scores in once.items():
            torch.testing.assert_close(again[name], scores)
