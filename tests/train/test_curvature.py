"""Second derivatives through ``sc.score`` and ``sc.prune``, against whole matrices written out in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from tests.train.initial_nets import F64

NAMES = ["0.weight", "3.weight"]


def tiny() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3), nn.Dropout(0.5)).double()


def images(count: int = 2, rows: int = 6) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(4)
    return [
        (torch.randn(rows, 1, 3, 3, generator=g, dtype=F64), torch.randint(0, 3, (rows,), generator=g))
        for _ in range(count)
    ]


def flat(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([found[name].detach().flatten() for name in NAMES])


def weights_of(net: nn.Module) -> Tensor:
    return flat({name: net.get_parameter(name) for name in NAMES})


def function_of(net: nn.Module, x: Tensor) -> Any:
    sizes = [net.get_parameter(name).numel() for name in NAMES]

    def outputs(vector: Tensor) -> Tensor:
        parts = zip(NAMES, vector.split(sizes), strict=True)
        tensors = {name: part.view_as(net.get_parameter(name)) for name, part in parts}
        return torch.func.functional_call(net, tensors, (x,))

    return outputs


def whole(net: nn.Module, data: list[tuple[Tensor, Tensor]], hess: str) -> Tensor:
    """The matrix [N, N], sample by sample, without anything of the package."""
    net, vector = net.eval(), weights_of(net)
    total, count = torch.zeros(len(vector), len(vector), dtype=F64), 0
    for x, y in data:
        for row in range(len(x)):
            outputs, label = function_of(net, x[row : row + 1]), y[row : row + 1]
            if hess == "exact":
                total += torch.autograd.functional.hessian(lambda v: F.cross_entropy(outputs(v), label), vector)  # noqa: B023
            elif hess == "fisher":
                g = torch.autograd.functional.jacobian(lambda v: F.cross_entropy(outputs(v), label), vector)  # noqa: B023
                total += torch.outer(g, g)
            else:
                j = torch.autograd.functional.jacobian(outputs, vector)[0]
                p = outputs(vector)[0].softmax(0)
                total += j.T @ (torch.diag(p) - torch.outer(p, p)) @ j
            count += 1
    return total / count


@pytest.mark.parametrize("hess", ["exact", "ggn", "fisher"])
def test_damage_by_three_routes(hess: str) -> None:
    net, data = tiny(), images()
    diagonal = whole(tiny(), data, hess).diagonal()
    negative = int((diagonal < 0).sum())
    assert (negative > 0) == (hess == "exact")
    given: dict[str, Any] = {"data": data, "loss": F.cross_entropy}
    if negative:
        with pytest.warns(UserWarning, match=f"{negative} of {len(diagonal)} second derivatives are negative"):
            found = sc.score(net, f"obd(hess={hess!r})", **given)
    else:
        found = sc.score(net, f"obd(hess={hess!r})", **given)
    torch.testing.assert_close(flat(found), 0.5 * weights_of(net).square() * diagonal.clamp(min=0))


def test_random_signs_are_exact_where_nothing_is_coupled_and_near_it_elsewhere() -> None:
    """The estimate of H_ii has the variance sum_{j != i} H_ij^2 / probes, and no bias."""
    net, data = tiny(), images()

    def raw(hessian_diagonal: Tensor, *, hess: str = "hutchinson", probes: int = 300) -> Tensor:
        return hessian_diagonal

    with pytest.warns(UserWarning, match="second derivatives are negative"):
        found = sc.score(net, raw, data=data, loss=F.cross_entropy, batches=2)
    each = [whole(tiny(), [batch], "exact") for batch in data]
    error = flat(found) - (each[0] + each[1]).diagonal() / 2
    variance = sum((h.square().sum(1) - h.diagonal().square()) / 300 / 4 for h in each)
    standard = error / torch.as_tensor(variance).sqrt()
    assert float(standard.abs().max()) < 4
    assert 0.6 < float(standard.square().mean().sqrt()) < 1.4
    single = nn.Linear(3, 1, bias=False, dtype=F64)

    def step(model: Any, batch: Any) -> Tensor:
        return (model.weight.square() * torch.tensor([1.0, 2.0, 3.0])).sum() / 2

    once = sc.score(single, "obd(hess='hutchinson', probes=1)", data=[0], step=step)["weight"]
    torch.testing.assert_close(once, 0.5 * single.weight.detach().square() * torch.tensor([1.0, 2.0, 3.0]))


def test_second_order_taylor_is_a_mean_of_squares_over_batches() -> None:
    net, data = tiny(), images(3)
    found = flat(sc.score(net, "taylor_second(hess='exact')", data=data, loss=F.cross_entropy))
    w, expected = weights_of(net), torch.zeros_like(weights_of(net))
    oracle = tiny().eval()
    for x, y in data:
        h = whole(oracle, [(x, y)], "exact").diagonal()
        slopes = torch.autograd.grad(F.cross_entropy(oracle(x), y), [oracle.get_parameter(n) for n in NAMES])
        g = torch.cat([slope.flatten() for slope in slopes])
        expected += (0.5 * h * w.square() - g * w).square() / 3
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("hess", ["ggn", "fisher"])
def test_the_surgeon_minimises_the_quadratic_model_jointly(hess: str) -> None:
    """The kept weights solve H_kk dw_k = H_kr w_r, which is the minimum with the removed ones at zero."""
    net, data, damping = tiny(), images(), 1e-2
    h = whole(tiny(), data, hess).detach() + damping * torch.eye(32, dtype=F64)
    w = weights_of(net).clone()
    spec = f"obs(hess={hess!r}, damping={damping})"
    found = flat(sc.score(net, spec, data=data, loss=F.cross_entropy))
    inverse = h.inverse()
    torch.testing.assert_close(found, w.square() / (2 * inverse.diagonal()))
    masks = sc.prune(net, 0.25, criterion=spec, update=True, data=data, loss=F.cross_entropy)
    gone = ~flat(dict(masks))
    assert int(gone.sum()) == 8
    kept = ~gone
    expected = torch.zeros_like(w)
    expected[kept] = w[kept] + torch.linalg.solve(h[kept][:, kept], h[kept][:, gone] @ w[gone])
    torch.testing.assert_close(weights_of(net), expected)
    single = w - sum(w[q] / inverse[q, q] * inverse[q] for q in gone.nonzero().flatten().tolist())
    assert float(torch.as_tensor(single)[gone].abs().max()) > 1e-3, "updates of single weights do not make them zero"


def test_a_second_call_goes_on_without_what_is_gone_and_undo_takes_both_back() -> None:
    net, data, damping = tiny(), images(), 1e-2
    dense = copy.deepcopy(net.state_dict())
    given: dict[str, Any] = {"criterion": f"obs(damping={damping})", "data": data, "loss": F.cross_entropy}
    first = sc.prune(net, 0.25, update=True, **given)
    gone = ~flat(dict(first))
    between = weights_of(net)
    h = (whole(copy.deepcopy(net), data, "ggn") + damping * torch.eye(32, dtype=F64))[~gone][:, ~gone]
    found = flat(sc.score(net, **given))
    torch.testing.assert_close(found[~gone], between[~gone].square() / (2 * h.inverse().diagonal()))
    masks = sc.prune(net, 0.5, update=True, **given)
    assert bool((weights_of(net)[~flat(dict(masks))] == 0).all())
    assert bool((~flat(dict(masks)))[gone].all())
    masks.undo()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in dense.items())


@pytest.mark.parametrize(("block", "average"), [(32, 1), (7, 1), (5, 4), (100, 5)])
def test_woodfisher_is_the_inverse_of_each_block(block: int, average: int) -> None:
    net, data, damping = tiny(), images(), 1e-3
    spec = f"woodfisher(block={block}, average={average}, damping={damping})"
    gradients = []
    oracle = tiny().eval()
    for x, y in data:
        for row in range(len(x)):
            loss = F.cross_entropy(oracle(x[row : row + 1]), y[row : row + 1])
            gradients.append(flat(dict(zip(NAMES, torch.autograd.grad(loss, [oracle.get_parameter(n) for n in NAMES]),
                                           strict=True))))  # fmt: skip
    means = [torch.stack(gradients[at : at + average]).mean(0) for at in range(0, len(gradients), average)]
    g, w = torch.stack(means), weights_of(net)
    scores, moved = torch.zeros_like(w), w.clone()
    masks = sc.prune(copy.deepcopy(net), 0.5, criterion=spec, data=data, loss=F.cross_entropy)
    gone = ~flat(dict(masks))
    for start, length in ((0, 8), (8, 24)):
        for at in range(start, start + length, block):
            part = slice(at, min(at + block, start + length))
            f = damping * torch.eye(part.stop - at, dtype=F64) + g[:, part].T @ g[:, part] / len(g)
            scores[part] = w[part].square() / (2 * f.inverse().diagonal())
            kept = ~gone[part]
            correction = torch.linalg.solve(f[kept][:, kept], f[kept][:, ~kept] @ w[part][~kept])
            moved[part] = torch.where(kept, w[part].index_add(0, kept.nonzero().flatten(), correction), 0)
    torch.testing.assert_close(flat(sc.score(net, spec, data=data, loss=F.cross_entropy)), scores)
    updated = sc.prune(net, 0.5, criterion=spec, update=True, data=data, loss=F.cross_entropy)
    assert torch.equal(~flat(dict(updated)), gone)
    torch.testing.assert_close(weights_of(net), moved)


def test_woodfisher_leaves_out_what_is_gone() -> None:
    net, data, damping = tiny(), images(), 1e-3
    masks = sc.prune(net, 0.3)
    alive, w = flat(dict(masks)), weights_of(net)
    f = whole(copy.deepcopy(net), data, "fisher").detach()
    expected = torch.zeros_like(w)
    for part in (slice(0, 8), slice(8, 32)):
        at = alive[part].nonzero().flatten() + part.start
        inverse = (f[at][:, at] + damping * torch.eye(len(at), dtype=F64)).inverse()
        expected[at] = w[at].square() / (2 * inverse.diagonal())
    found = sc.score(net, f"woodfisher(damping={damping})", data=data, loss=F.cross_entropy)
    torch.testing.assert_close(flat(found), expected)


def trained() -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(200, 8, generator=g)
    y = (x[:, 0] * x[:, 1] > 0).long()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, (x, y)


@pytest.mark.parametrize("criterion", ["obs(damping=0.001)", "woodfisher(block=128, damping=0.001)"])
def test_on_a_trained_network_the_update_keeps_the_loss_down(criterion: str) -> None:
    net, data = trained()
    losses = {}
    for update in (False, True):
        pruned, masks = sc.prune(
            net, 0.4, criterion=criterion, update=update, data=data, loss=F.cross_entropy, inplace=False
        )
        losses[update] = float(F.cross_entropy(pruned(data[0]), data[1]).detach())
        masks.check()
    assert losses[True] < losses[False]
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), trained()[0].parameters(), strict=True))


def test_update_with_channels_and_without_undo() -> None:
    net, data = trained()
    masks = sc.prune(net, 0.5, criterion="woodfisher", unit="channel", example_inputs=data[0], update=True, data=data,
                     loss=F.cross_entropy, undo=False)  # fmt: skip
    masks.check()
    small = sc.shrink(net, example_inputs=data[0])
    torch.testing.assert_close(small(data[0]), net(data[0]), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="removed values are gone"):
        masks.undo()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"criterion": "snip", "update": True},
            "has no update of the kept weights; obs, woodfisher, woodfisher_flops have",
        ),
        ({"criterion": "combine(obs=1.0, l1=1.0)", "update": True}, "has no update of the kept weights"),
        ({"criterion": "obs", "update": True, "rounds": 3}, "goes with one round"),
        ({"criterion": "obs(hess='hutchinson')"}, "known are exact, ggn, fisher"),
        ({"criterion": "obd(hess='exakt')"}, "known are exact, hutchinson, ggn, fisher"),
        ({"criterion": "obd(hess='hutchinson', probes=0)"}, "a whole number from 1"),
        ({"criterion": "obs(damping=-1.0)"}, "give a number from 0"),
        ({"criterion": "obs(hess='exact', damping=0.0)"}, "not positive definite"),
        ({"criterion": "woodfisher(damping=0.0)"}, "damping is above 0"),
        ({"criterion": "woodfisher(block=2.5)"}, "whole numbers from 1"),
        ({"criterion": "woodfisher(block=0)"}, "whole numbers from 1"),
        ({"criterion": "combine(obd=1.0, taylor_second=1.0)"}, "in one combination"),
    ],
)
def test_what_cannot_be_is_said(choice: dict[str, Any], message: str) -> None:
    net = tiny()
    with pytest.raises(ValueError, match=message):
        sc.prune(net, 0.5, data=images(), loss=F.cross_entropy, **choice)
    assert sc.find_masks(net) is None


def test_large_networks_are_told_what_to_take() -> None:
    net, data = nn.Linear(300, 80), (torch.randn(2, 300), torch.zeros(2, dtype=torch.long))
    for criterion, message in (("obs", "works in blocks"), ("obd(hess='exact')", 'Take hess="hutchinson"')):
        with pytest.raises(ValueError, match=message):
            sc.score(net, criterion, data=data, loss=F.cross_entropy)
    with pytest.raises(ValueError, match="needs the outputs apart from the loss"):
        sc.score(net, "obd", data=data, step=lambda m, b: F.cross_entropy(m(b[0]), b[1]))
