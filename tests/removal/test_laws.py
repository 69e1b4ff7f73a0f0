"""Laws of removal on random small networks: equals masking, adds up, twice is once with both, nothing is nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from tests.oracles.removal import run, shapes, zeroed
from tests.removal.traced_nets import dead_slices, distance, seeded

Step = tuple[Any, ...]
Units = dict[str, list[int]]

STEPS = st.one_of(
    st.tuples(st.just("conv"), st.integers(3, 7), st.sampled_from([1, 3])),
    st.tuples(st.just("norm")),
    st.tuples(st.just("relu")),
    st.tuples(st.just("residual"), st.booleans()),
    st.tuples(st.just("concat"), st.integers(2, 4)),
    st.tuples(st.just("dense"), st.integers(2, 4)),
    st.tuples(st.just("depthwise"), st.integers(1, 2)),
    st.tuples(st.just("pool"), st.booleans()),
    st.tuples(st.just("gate")),
)


class Grown(nn.Module):
    """A stem, steps drawn from the grammar, and a classifier on means or on the flattened map."""

    def __init__(self, stem: int, steps: list[Step], flat: bool) -> None:
        super().__init__()
        self.steps, self.flat, self.parts = steps, flat, nn.ModuleList()
        width = stem
        self.stem = nn.Conv2d(2, stem, 3, padding=1)
        for step in steps:
            part, width = _part(step, width)
            self.parts.append(part)
        self.hidden = nn.Linear(width * 4 if flat else width, 6)
        self.classes = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for step, part in zip(self.steps, self.parts, strict=True):
            h = _run(step, part, h)
        h = F.adaptive_max_pool2d(h, 2).flatten(1) if self.flat else h.mean((2, 3))
        return self.classes(self.hidden(h).relu())


def _part(step: Step, width: int) -> tuple[nn.Module, int]:
    match step:
        case ("conv", out, size):
            return nn.Conv2d(width, out, size, padding=size // 2), out
        case ("norm",):
            return nn.BatchNorm2d(width), width
        case ("residual", normed):
            branch = nn.Sequential(nn.Conv2d(width, 5, 1), nn.ReLU(), nn.Conv2d(5, width, 3, padding=1))
            return nn.Sequential(*branch, nn.BatchNorm2d(width)) if normed else branch, width
        case ("concat", more):
            return nn.Conv2d(width, more, 1), width + more
        case ("dense", more):
            return nn.ModuleList([nn.Conv2d(width, more, 1), nn.Conv2d(width, more, 3, padding=1)]), 2 * more
        case ("depthwise", multiplier):
            return nn.Conv2d(width, width * multiplier, 3, padding=1, groups=width), width * multiplier
        case ("gate",):
            return nn.Conv2d(width, width, 1), width
        case _:
            return nn.Identity(), width


def _run(step: Step, part: Any, h: Tensor) -> Tensor:
    match step:
        case ("relu",):
            return h.relu()
        case ("residual", _):
            return h + part(h)
        case ("concat", _):
            return torch.cat([h, part(h).relu()], 1)
        case ("dense", _):
            return torch.cat([layer(h) for layer in part], 1)
        case ("pool", largest):
            return F.max_pool2d(h, 2, 1, 1) if largest else F.avg_pool2d(h, 2, 1, 1)
        case ("gate",):
            return h * part(h.mean((2, 3), keepdim=True)).sigmoid()
        case _:
            return part(h)


NETWORKS = st.builds(
    lambda stem, steps, flat, seed: seeded(lambda: Grown(stem, steps, flat), seed),
    st.integers(3, 6),
    st.lists(STEPS, max_size=5),
    st.booleans(),
    st.integers(0, 9),
)
FEW = settings(max_examples=12, phases=[Phase.generate])  # finding the smallest example takes minutes


def images(batch: int) -> Tensor:
    return torch.randn(batch, 2, 5, 5, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)


def draw_units(data: st.DataObject, groups: Mapping[str, Any], stay: int = 1) -> Units:
    """Any units of every group; of each so many stay."""
    units: Units = {}
    for name, group in groups.items():
        numbers = st.lists(st.integers(0, group.units - 1), max_size=max(group.units - stay, 0), unique=True)
        units[name] = sorted(data.draw(numbers, label=name))
    return units


def removed(model: nn.Module, dead: list[tuple[str, int, list[int]]]) -> int:
    """How many elements of the parameters are in at least one of the slices."""
    marks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in model.named_parameters()}
    for name, dim, positions in dead:
        if name in marks:
            marks[name].index_fill_(dim, torch.tensor(positions, dtype=torch.long), True)
    return sum(int(mark.sum()) for mark in marks.values())


def same(one: nn.Module, other: nn.Module) -> bool:
    values, others = one.state_dict(), other.state_dict()
    return values.keys() == others.keys() and all(torch.equal(values[name], others[name]) for name in values)


@FEW
@given(NETWORKS, st.data())
def test_shrunk_equals_masked_and_parameters_add_up(model: nn.Module, data: st.DataObject) -> None:
    groups = sc.groups(model, images(2))
    assert "hidden.weight" in groups
    units = draw_units(data, groups)
    dead = dead_slices(groups, units)
    small = sc.shrink(model, units=units, example_inputs=images(2))
    masked = zeroed(model, dead)
    for batch in (1, 4):
        assert distance(run(masked, images(batch)), run(small, images(batch))) < 1e-9
    count = [sum(p.numel() for p in net.parameters()) for net in (model, small)]
    assert count[0] - count[1] == removed(model, dead)


@FEW
@given(NETWORKS, st.data())
def test_twice_is_once_with_both(model: nn.Module, data: st.DataObject) -> None:
    groups = sc.groups(model, images(2))
    # Two stay: of one channel a depthwise convolution is a plain one, whose maps are units of their own.
    first, then, both = draw_units(data, groups, stay=2), Units(), Units()
    half = sc.shrink(model, units=first, example_inputs=images(2))
    for name, group in sc.groups(half, images(2)).items():
        left = [unit for unit in range(groups[name].units) if unit not in first[name]]
        assert len(left) == group.units
        then |= draw_units(data, {name: group})
        both[name] = sorted([*first[name], *(left[number] for number in then[name])])
    both = {**first, **both}
    twice = sc.shrink(half, units=then, example_inputs=images(2))
    once = sc.shrink(model, units=both, example_inputs=images(2))
    assert same(twice, once)
    assert torch.equal(twice(images(3)), once(images(3)))


@FEW
@given(NETWORKS)
def test_nothing_removed_is_the_same_network(model: nn.Module) -> None:
    for units in ({}, {name: [] for name in sc.groups(model, images(2))}):
        small = sc.shrink(model, units=units, example_inputs=images(2))
        assert small is not model
        assert same(small, model)
        assert torch.equal(small(images(3)), model(images(3)))


@FEW
@given(NETWORKS)
def test_groups_share_no_place_and_cover_whole_axes_of_what_they_make(model: nn.Module) -> None:
    groups = sc.groups(model, images(2))
    owners: dict[tuple[str, int, int], str] = defaultdict(str)
    sizes = shapes(model)
    for name, group in groups.items():
        for member in group.members:
            assert len(member.owner) == sizes[member.name][member.dim]
            assert set(member.owner) - {-1} == set(range(group.units)), "a unit has no slice here"
            for place, unit in enumerate(member.owner):
                key = (member.name, member.dim, place)
                assert unit < 0 or not owners[key], f"{key} belongs to {owners[key]} and {name}"
                owners[key] = owners[key] or (name if unit >= 0 else "")
