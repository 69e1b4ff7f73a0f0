"""Laws of coupled groups: unit masks survive the way to parameters and back, and elements are counted once."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.core.unit_channel import Channel, parameter_layout
from secateur.types import KeyLayout, Member
from tests.oracles.channel_nets import expand_slowly, pool_slowly

few = settings(deadline=None, max_examples=60)


@st.composite
def owners(draw: st.DrawFn, units: int) -> tuple[int, ...]:
    """Every unit at one position at least, some positions of no unit, in any order."""
    more = draw(st.lists(st.integers(-1, units - 1), max_size=3))
    return tuple(draw(st.permutations([*range(units), *more])))


@st.composite
def groups(draw: st.DrawFn, prefix: str) -> KeyLayout:
    """A group with tensors of its own, one of which it may hold along two axes."""
    units = draw(st.integers(1, 4))
    members: list[Member] = []
    for number in range(draw(st.integers(1, 3))):
        along = draw(owners(units))
        shape = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(1, 2)))]
        dim = draw(st.integers(0, len(shape)))
        shape.insert(dim, len(along))
        part = "out" if number == 0 else draw(st.sampled_from(["out", "in", "follows"]))
        members.append(Member(f"{prefix}{number}", tuple(shape), dim, part, along))
    if draw(st.booleans()):
        square = (units, units)
        members += [Member(f"{prefix}hh", square, dim, "in", tuple(range(units))) for dim in (0, 1)]
    members.append(Member(f"{prefix}bias", (units,), 0, "follows", tuple(draw(st.permutations(range(units))))))
    return KeyLayout((units,), "group", members=tuple(members))


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, KeyLayout]:
    return {prefix: draw(groups(prefix)) for prefix in draw(st.sampled_from(["a", "ab", "abc"]))}


@st.composite
def chains(draw: st.DrawFn) -> dict[str, KeyLayout]:
    """Neighbours share a tensor: what one makes along axis 0 the other reads along axis 1."""
    widths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    layout: dict[str, KeyLayout] = {}
    for place in range(1, len(widths)):
        made, read = (widths[place], widths[place - 1]), (2, widths[place])
        if place + 1 < len(widths):
            read = (widths[place + 1], widths[place])
        along = tuple(range(widths[place]))
        members = Member(f"w{place}", made, 0, "out", along), Member(f"w{place + 1}", read, 1, "in", along)
        layout[f"w{place}"] = KeyLayout((widths[place],), "group", members=members)
    return layout


def _draw_masks(data: st.DataObject, layout: dict[str, KeyLayout], *, one_stays: bool) -> dict[str, torch.Tensor]:
    kept = {}
    for group, key in layout.items():
        mask = data.draw(st.lists(st.booleans(), min_size=key.shape[0], max_size=key.shape[0]))
        if one_stays and not any(mask):
            mask[data.draw(st.integers(0, key.shape[0] - 1))] = True
        kept[group] = torch.tensor(mask)
    return kept


@few
@given(layouts(), st.data())
def test_unit_masks_of_disjoint_groups_come_back(layout: dict[str, KeyLayout], data: st.DataObject) -> None:
    kept = _draw_masks(data, layout, one_stays=False)
    masks = Channel().expand(kept, layout)
    assert {name: mask.shape for name, mask in masks.items()} == {
        name: key.shape for name, key in parameter_layout(layout).items()
    }
    back = Channel().pool(masks, layout)
    square = {group for group, key in layout.items() if any("hh" in member.name for member in key.members)}
    for group in layout:
        if group in square:  # also when read from the other tensors alone: one more unit takes nothing back
            rest = {name: mask for name, mask in masks.items() if "hh" not in name}
            assert torch.equal(Channel().pool(rest, layout)[group], kept[group])
        assert torch.equal(back[group], kept[group])


@few
@given(chains(), st.data())
def test_unit_masks_of_neighbours_come_back_while_one_unit_stays(
    layout: dict[str, KeyLayout], data: st.DataObject
) -> None:
    kept = _draw_masks(data, layout, one_stays=True)
    back = Channel().pool(Channel().expand(kept, layout), layout)
    assert all(torch.equal(back[group], kept[group]) for group in layout)


@few
@given(layouts(), st.data())
def test_expanding_is_the_definition_and_monotone(layout: dict[str, KeyLayout], data: st.DataObject) -> None:
    kept = _draw_masks(data, layout, one_stays=False)
    masks, slow = Channel().expand(kept, layout), expand_slowly(kept, layout)
    assert all(torch.equal(masks[name], slow[name]) for name in slow)
    fewer = {group: mask & (torch.arange(len(mask)) % 2 == 0) for group, mask in kept.items()}
    below = Channel().expand(fewer, layout)
    assert not any(bool((below[name] & ~masks[name]).any()) for name in masks)


@few
@given(layouts(), st.sampled_from(["sum", "mean", "l2", "rms", "max"]), st.integers(0, 2**31))
def test_pooling_is_the_definition(layout: dict[str, KeyLayout], reduce: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {
        name: torch.randint(-9, 9, key.shape, generator=generator).double()
        for name, key in parameter_layout(layout).items()
    }
    if any(all(len(m.shape) < 2 for m in key.members) for key in layout.values()):
        return
    pooled = Channel("all").pool(scores, layout, reduce)  # type: ignore[arg-type]
    for group, key in layout.items():
        torch.testing.assert_close(
            pooled[group], torch.tensor(pool_slowly(scores, key, reduce, everything=True), dtype=torch.float64)
        )


@few
@given(layouts(), st.integers(0, 2**31))
def test_pooling_follows_a_permutation_of_the_units(layout: dict[str, KeyLayout], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {n: torch.rand(k.shape, generator=generator).double() for n, k in parameter_layout(layout).items()}
    straight = Channel("all").pool(scores, layout, "sum")
    for group, key in layout.items():
        order = torch.randperm(key.shape[0], generator=generator).tolist()
        turned = tuple(
            Member(m.name, m.shape, m.dim, m.part, tuple(order[u] if u >= 0 else -1 for u in m.owner))
            for m in key.members
        )
        moved = Channel("all").pool(
            scores,
            {group: KeyLayout(key.shape, "group", members=turned)}
            | {other: one for other, one in layout.items() if other != group},
            "sum",
        )
        torch.testing.assert_close(moved[group][order], straight[group])
