"""Padding, frozen weights, one-shot data and bad input of the way down of linear discriminant analysis."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from tests.train.test_lda_dependency import DATA, icc, network, unit


class Mixing(nn.Module):
    """Tokens that see the mean of all tokens, padding too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table, self.up, self.top, self.head = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.double()

    def over(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.top(hidden + hidden.mean(1, keepdim=True)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.head(self.over(torch.tanh(self.up(self.table(input_ids)))).mean(1))


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_padding_counts_neither_at_the_top_nor_below(pool: str) -> None:
    net, g = Mixing(), torch.Generator().manual_seed(4)
    ids, y = torch.randint(0, 9, (6, 5), generator=g), torch.tensor([0, 1, 0, 1, 1, 0])
    mask = (torch.arange(5) < torch.tensor([[4], [2], [5], [3], [1], [5]])).long()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": y}
    how: dict[str, Any] = {"unit": "filter", "targets": ["up", "top"], "data": batch}
    found = sc.score(net, f"lda_dependency(top_density=0.4, pool={pool!r})", **how)

    def looked_at(a: Tensor, n: int) -> Tensor:
        own = a[0, : int(mask[n].sum())]
        return own.amax(0) if pool == "max" else own.mean(0)

    low = [torch.tanh(net.up(net.table(ids[n : n + 1]))).detach().requires_grad_() for n in range(6)]
    x = torch.stack([looked_at(net.over(a), n) for n, a in enumerate(low)])
    values = icc(x.detach(), y)
    torch.testing.assert_close(found["top.weight"], unit(values))
    kept, rows = values.argsort(descending=True)[:2], []
    for n, a in enumerate(low):
        (slope,) = torch.autograd.grad(x[n, kept].sum(), a, retain_graph=True)
        rows.append((a * slope)[0, : int(mask[n].sum())].sum(0).abs())
    torch.testing.assert_close(found["up.weight"], unit(torch.stack(rows).mean(0).detach()))


class TimesFirst(Mixing):
    """``[T, B, C]`` inside."""

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        low = torch.tanh(self.up(self.table(input_ids.t())))
        return self.head(torch.tanh(self.top(low + low.mean(0, keepdim=True))).mean(0))


def test_time_may_come_first() -> None:
    """As many tokens as examples: no length tells which axis is which."""
    ids, y = torch.randint(0, 9, (6, 6), generator=torch.Generator().manual_seed(6)), torch.arange(6) % 2
    how: dict[str, Any] = {"unit": "filter", "targets": ["up", "top"], "data": {"input_ids": ids, "labels": y}}
    turned = sc.score(TimesFirst(), "lda_dependency(top_density=0.4)", **how)
    how["data"] = {**how["data"], "attention_mask": torch.ones(6, 6)}
    plain = sc.score(Mixing(), "lda_dependency(top_density=0.4)", **how)
    for name, scores in plain.items():
        torch.testing.assert_close(turned[name], scores)


def test_nothing_is_left_behind_and_frozen_weights_are_no_obstacle() -> None:
    net = network().train()
    net[0].requires_grad_(False)
    net[4].weight.grad = torch.ones_like(net[4].weight)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        frozen = sc.score(net, "lda_dependency(top_density=0.6)", unit="filter", data=DATA, batches=2)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert [p.requires_grad for p in net.parameters()] == [False] * 2 + [True] * 8
    assert torch.equal(net[4].weight.grad, torch.ones_like(net[4].weight))
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    loose = sc.score(network(), "lda_dependency(top_density=0.6)", unit="filter", data=DATA, batches=2)
    assert all(torch.equal(frozen[name], loose[name]) for name in loose)


def test_a_generator_of_batches_is_read_once() -> None:
    how: dict[str, Any] = {"unit": "filter", "batches": 2}
    found = sc.score(network(), "lda_dependency(top_density=0.6)", data=(batch for batch in DATA), **how)
    again = sc.score(network(), "lda_dependency(top_density=0.6)", data=DATA, **how)
    assert all(torch.equal(found[name], again[name]) for name in again)


class Doing(nn.Module):
    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.low, self.top, self.head, self.between = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(torch.tanh(self.top(self.between(torch.tanh(self.low(x)))))))


def without_gradients(x: Tensor) -> Tensor:
    return x.detach()


def test_what_is_wrong_is_said() -> None:
    data = (torch.randn(8, 3), torch.arange(8) % 2)

    def scores(between: Callable[[Tensor], Tensor] = torch.relu, spec: str = "top_density=0.5", **more: Any) -> Any:
        return sc.score(Doing(between), f"lda_dependency({spec})", unit="filter", **{"data": data, **more})

    with pytest.raises(ValueError, match=r"give it, lda_dependency\(top_density=0\.5\); sc\.prune"):
        scores(spec="")
    for share in (0, 1.5):
        with pytest.raises(ValueError, match="the share of the top's units that stay"):
            scores(spec=f"top_density={share}")
    with pytest.raises(ValueError, match=r"of low\.weight: tanh .* is overwritten in place .*; write that line"):
        scores(lambda x: x.mul_(2.0))
    with pytest.raises(ValueError, match=r"do not depend on 'low\.weight', which is not below it"):
        scores(without_gradients)
    with pytest.raises(ValueError, match=r"give data= .* pair"):
        scores(data=None)
    with pytest.raises(ValueError, match="labels are missing"):
        scores(data=data[0])
    with pytest.raises(ValueError, match="leave mode='eval'"):
        scores(mode="train")
    with pytest.raises(ValueError, match="take pool 'max' or 'mean'"):
        scores(spec="top_density=0.5, pool='sum'")
