"""Discriminants, sizes and sensitivities together, as the article on combined criteria describes, end to end."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc

PARTS = {"lda": 1.0, "l2": 1.0, "taylor_2017": 1.0}


def classes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes around three points, in ten dimensions."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count,), generator=g)
    centres = torch.randn(3, 10, generator=torch.Generator().manual_seed(0)) * 1.5
    return centres[y] + torch.randn(count, 10, generator=g), y


def trained() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer, (x, y) = torch.optim.Adam(net.parameters(), lr=0.02), classes(300, 1)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        # Planted for each of the three: noise that tells no classes apart, a small unit, a unit that nothing hears.
        net[0].weight[3] = 0.0
        net[0].bias[3] = 2.0
        net[0].weight[7] *= 1e-3
        net[0].bias[7] = 0.0
        net[2].weight[:, 11] = 0.0
    return net


def right(net: nn.Module) -> float:
    x, y = classes(600, 2)
    with torch.no_grad():
        return float((net(x).argmax(1) == y).double().mean())


def test_three_criteria_act_together() -> None:
    net, data = trained(), classes(200, 3)
    before = right(net)
    call = {"unit": "channel", "data": data, "loss": F.cross_entropy, "example_inputs": data[0][:2]}
    alone = {name: next(iter(sc.score(net, name, **call).values())) for name in PARTS}
    together = next(iter(sc.score(net, sc.combine(PARTS), **call).values()))
    ranks = [score.argsort().argsort().double() / 15 for score in alone.values()]
    torch.testing.assert_close(together, ranks[0] + ranks[1] + ranks[2])
    assert int(alone["lda"].argmin()) == 3, "it says the same to all classes"
    assert int(alone["taylor_2017"].argmin()) == 11, "nothing hears it"
    assert int(alone["l2"].argmin()) == 3
    masks = sc.prune(net, 0.5, criterion=sc.combine(PARTS), **call)
    kept = next(iter(masks.unit_masks.values()))
    assert not bool(kept[torch.tensor([3, 7])].any()), "small for one, mute for the others"
    assert int(kept.sum()) == 8
    small = sc.shrink(net, example_inputs=data[0][:2])
    assert small[0].out_features == 8
    assert right(small) > before - 0.05
    torch.testing.assert_close(small(data[0]), net(data[0]), atol=1e-5, rtol=1e-4)


def test_weights_of_the_parts_shift_the_choice() -> None:
    net, data = trained(), classes(200, 3)
    call = {"unit": "filter", "data": data, "loss": F.cross_entropy}
    only = {name: sc.score(net, name, **call)["0.weight"].argsort() for name in PARTS}
    for name in PARTS:
        heavy = sc.combine({part: 1000.0 if part == name else 1e-3 for part in PARTS})
        assert torch.equal(sc.score(net, heavy, **call)["0.weight"].argsort(), only[name])
    spec = sc.combine(PARTS).spec
    masks = sc.prune(trained(), 0.25, criterion=spec, **call)
    assert int(masks.unit_masks["0.weight"].sum()) == 12
