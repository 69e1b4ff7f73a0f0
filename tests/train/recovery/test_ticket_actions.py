"""Mask-1 and mask-0 actions on networks: each against its definition in words, and held through training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.core.mask_actions import KEPT, act

X, Y = torch.randn(8, 5), torch.arange(8) % 3


def _pruned() -> tuple[nn.Sequential, sc.Masks, dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    first = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    last = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return net, sc.prune(net, 0.6, criterion="large_final", allocation="uniform"), first, last


def _kept_values(net: nn.Module, masks: sc.Masks, name: str) -> Tensor:
    return net.get_parameter(name).detach()[masks[name]]


@pytest.mark.parametrize("kept", KEPT)
def test_kept_weights_become_what_the_action_says(kept: str) -> None:
    net, masks, first, _ = _pruned()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    made = sc.tickets.ticket(net, snapshot=first, kept=kept, seed=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    own = sc.find_masks(made)
    assert own is not None
    for name in masks:
        init, found, mask = first[name], _kept_values(made, masks, name), masks[name]
        assert torch.equal(own[name], mask)
        assert bool((made.get_parameter(name)[~mask] == 0).all())
        if kept == "rewind":
            assert torch.equal(found, init[mask])
        elif "constant" in kept:
            spread = ((init - init.mean()) ** 2).mean().sqrt()
            assert found.abs().tolist() == pytest.approx([float(spread)] * len(found), rel=1e-6)
        else:
            pool = init if "reinit" in kept else init[mask]
            sizes = sorted(found.abs().tolist())
            assert set(sizes) <= set(pool.abs().flatten().tolist())
            assert not torch.equal(found.abs(), init[mask].abs())
            if "reshuffle" in kept:
                assert sizes == sorted(pool.abs().tolist())
        same_signs = torch.equal(found.sign(), init[mask].sign())
        assert same_signs == (kept == "rewind" or kept.startswith("signed"))
    for name in ("0.bias", "2.bias"):
        assert torch.equal(made.get_parameter(name), first[name])
    again = sc.tickets.ticket(net, snapshot=first, kept=kept, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))


def test_constant_shuffles_the_signs_of_the_layer() -> None:
    init = torch.tensor([1.0, 1.0, 1.0, -2.0, 3.0, -1.0])
    everything = torch.ones(6, dtype=torch.bool)
    found = act(init, everything, torch.Generator().manual_seed(1), kept="constant")
    assert sorted(found.sign().tolist()) == sorted(init.sign().tolist())
    assert not torch.equal(found.sign(), init.sign())


def test_rescaling_multiplies_by_the_inverse_density_of_the_layer() -> None:
    net, masks, first, _ = _pruned()
    made = sc.tickets.ticket(net, snapshot=first, rescale=True)
    for name in masks:
        factor = masks[name].numel() / int(masks[name].sum())
        assert torch.allclose(_kept_values(made, masks, name), factor * first[name][masks[name]])


def test_removed_weights_stay_where_they_were_frozen() -> None:
    net, masks, first, last = _pruned()
    held = {"init": dict(first)}
    held["zero_if_shrunk"] = {
        name: torch.tensor(
            [
                0.0 if abs(b) < abs(a) else a
                for a, b in zip(first[name].flatten().tolist(), last[name].flatten().tolist(), strict=True)
            ]
        ).reshape(first[name].shape)
        for name in masks
    }
    for removed, expected in held.items():
        made = sc.tickets.ticket(net, snapshot=first, removed=removed, final=last)
        assert sc.find_masks(made) is None
        optimizer = torch.optim.Adam(made.parameters(), lr=0.1, weight_decay=0.1)
        with sc.tickets.frozen(made, masks):
            for _ in range(3):
                optimizer.zero_grad()
                F.cross_entropy(made(X), Y).backward()
                optimizer.step()
        for name in masks:
            found = made.get_parameter(name).detach()
            assert torch.equal(found[~masks[name]], expected[name][~masks[name]])
            assert bool((found[masks[name]] != first[name][masks[name]]).all())
    kept = made.get_parameter("0.weight").detach().clone()
    optimizer.step()
    assert not torch.equal(made.get_parameter("0.weight")[~masks["0.weight"]], kept[~masks["0.weight"]])


def _both_by_bisection(final: list[float], init: list[float], wanted: int, *, small: bool) -> set[int]:
    """The paper's code: the share p of both masks grows until their intersection is large enough."""
    sign = 1 if small else -1
    by_final = sorted(range(len(final)), key=lambda i: (sign * abs(final[i]), i if small else -i))
    by_init = sorted(range(len(init)), key=lambda i: (sign * abs(init[i]), i if small else -i))
    for p in range(len(final) + 1):
        both = set(by_final[:p]) & set(by_init[:p])
        if len(both) >= wanted:
            return both
    raise AssertionError(wanted)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10_000), st.booleans())
def test_the_intersection_of_two_masks(n: int, seed: int, small: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Linear(n, 1, bias=False)
    init = torch.randn(1, n, generator=generator)
    with torch.no_grad():
        net.weight.copy_(torch.randn(1, n, generator=generator))
    wanted = 1 + seed % (n - 1)
    both = _both_by_bisection(net.weight[0].tolist(), init[0].tolist(), wanted, small=small)
    name = "small_init_small_final" if small else "large_init_large_final"
    masks = sc.prune(net, 1 - wanted / n, criterion=f"{name}(by='rank')", init={"weight": init})
    found = set(masks["weight"][0].nonzero().flatten().tolist())
    assert found <= both  # one step of p may bring two at once
    assert len(found) == wanted
    assert len(both) - wanted <= 1


def test_bad_questions_are_answered_in_words() -> None:
    net, masks, first, _ = _pruned()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"kept": "rewound"}, "kept='rewound'.*take kept= rewind, reinit"),
        ({"removed": "one"}, "and removed= zero, init"),
        ({"removed": "zero_if_shrunk"}, "give final="),
    ]
    for options, said in wrong:
        with pytest.raises(ValueError, match=said):
            sc.tickets.ticket(net, snapshot=first, **options)
    with pytest.raises(ValueError, match="no masks"):
        sc.tickets.ticket(nn.Linear(2, 2), snapshot={})
    with pytest.raises(ValueError, match="has shape"), sc.tickets.frozen(net, {"0.weight": masks["2.weight"]}):
        pass
    for options, said in (({"by": "place"}, "by='place'"), ({"by": "rank", "alpha": 2.0}, "leave alpha out")):
        inside = ", ".join(f"{key}={value!r}" for key, value in options.items())
        with pytest.raises(ValueError, match=said):
            sc.score(nn.Linear(2, 2), f"large_init_large_final({inside})", init=nn.Linear(2, 2).state_dict())
