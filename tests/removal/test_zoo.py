"""Every architecture of the table: the smaller model computes what the masked one computes, and is smaller."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import floor
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import secateur as sc
from tests.oracles.removal import Slices, clean, flops, run, shapes, zeroed
from tests.removal.zoo.architecture import Architecture, vectors
from tests.removal.zoo.table import ARCHITECTURES, REFUSED

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
    # torch's own setting of its oneDNN flags, used to count what an LSTM does
    pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning"),
]

Units = dict[str, list[int]]
Freedom = Literal["channel", "head", "head_dim"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one, for DistributedDataParallel."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store: Path = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: architecture.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    if request.param.name == "distributed":
        request.getfixturevalue("one_process")
    return request.param


def choose(groups: Mapping[str, Any], ratio: float | None, seed: str) -> Units:
    """Some units of every group, another draw for every seed; without a ratio another share of each, none of some."""
    draw = random.Random(seed)
    units: Units = {}
    for name, group in groups.items():
        share = draw.choice((0.0, 0.25, 0.5, 0.75)) if ratio is None else ratio
        count = min(floor(share * group.units + 0.5), group.units - 1)
        if count:
            units[name] = sorted(draw.sample(range(group.units), count))
    return units


def slices(groups: Mapping[str, Any], units: Units, parts: tuple[str, ...] | None = None) -> list[Slices]:
    """All slices of the chosen units, or those of some parts."""
    found: list[Slices] = []
    for name, numbers in units.items():
        gone = set(numbers)
        for member in groups[name].members:
            if parts is None or member.part in parts:
                positions = [place for place, unit in enumerate(member.owner) if unit in gone]
                found.append((member.name, member.dim, positions))
    return found


def narrowed(model: nn.Module, dead: list[Slices]) -> dict[str, tuple[int, ...]]:
    """The shapes that the tensors of a model must have once these slices are gone."""
    gone: dict[tuple[str, int], set[int]] = defaultdict(set)
    for name, dim, positions in dead:
        gone[name, dim] |= set(positions)
    return {
        name: tuple(size - len(gone[name, dim]) for dim, size in enumerate(shape))
        for name, shape in shapes(model).items()
    }


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that removal could change by mistake: values, identities, plain attributes, flags."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    attributes = {
        name: {key: value for key, value in vars(module).items() if isinstance(value, (int, float, str, tuple))}
        for name, module in model.named_modules()
    }
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    flags = {name: (id(tensor), tensor.requires_grad) for name, tensor in tensors.items()}
    return {"attributes": attributes, "hooks": hooks, "flags": flags} | {
        f"tensor {name}": tensor.detach().clone() for name, tensor in tensors.items()
    }


def check_untouched(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for key, value in before.items():
        same = torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key]
        assert same, f"the original model changed: {key}"


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest difference, relative to the largest value where that is above one."""
    assert [tensor.shape for tensor in one] == [tensor.shape for tensor in other]
    gaps = [0.0]
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        if a.numel():
            gap, largest = (a.double() - b.double()).abs().max(), a.double().abs().max()
            gaps.append(float(gap / largest.clamp(min=1.0)))
    return max(gaps)


def check(
    architecture: Architecture, groups: Mapping[str, Any], units: Units, batch: int, unit: Freedom = "channel"
) -> nn.Module:
    """Remove units: all promises about the result, and about the model that was given."""
    model, example = architecture.make(), architecture.inputs(batch)
    before = snapshot(model)
    dead = slices(groups, units)
    small = sc.shrink(model, units=units, unit=unit, example_inputs=example)
    check_untouched(before, snapshot(model))

    assert shapes(small) == narrowed(model, dead)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    trained = {clean(name): p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in small.named_parameters()} == trained

    masked = zeroed(model, dead)
    for size in (1, 3):
        inputs = architecture.inputs(size)
        expected = run(masked, inputs)
        assert distance(expected, run(model, inputs)) > 5 * architecture.tolerance, "these units did nothing"
        assert distance(expected, run(small, inputs)) <= architecture.tolerance
    return small


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_the_smaller_model_computes_what_the_masked_one_computes(
    architecture: Architecture, ratio: float, batch: int
) -> None:
    groups = sc.groups(architecture.make(), example_inputs=architecture.inputs(batch))
    sizes = [group.units for group in groups.values() if group.units > 1]
    assert len(sizes) >= architecture.min_groups, f"{architecture.note}\n{groups}"
    assert sum(sizes) >= architecture.min_units, f"{architecture.note}\n{groups}"
    small = check(architecture, groups, choose(groups, ratio, f"{architecture.name} {ratio} {batch}"), batch)
    if ratio == 0.5:
        assert architecture.macs_at_half is not None
        example = architecture.inputs(1)
        left = flops(small, example) / flops(architecture.make(), example)
        assert left <= architecture.macs_at_half + 0.0005, f"{left:.3f} of the multiply-adds are left"


def test_groups_are_independent(architecture: Architecture) -> None:
    groups = sc.groups(architecture.make(), example_inputs=architecture.inputs(2))
    for seed in range(2):
        units = choose(groups, None, f"{architecture.name} {seed}")
        if units:
            check(architecture, groups, units, 2)


def parts() -> Iterator[tuple[Architecture, Freedom, tuple[int, ...]]]:
    """Attention by whole heads and by places in them, with the units that each group must have."""
    for architecture in ARCHITECTURES:
        if architecture.heads:
            yield architecture, "head", architecture.heads
        if architecture.head_dims:
            yield architecture, "head_dim", architecture.head_dims


PARTS = list(parts())


@pytest.mark.parametrize("ratio", [0.3, 0.5, None])
@pytest.mark.parametrize(("architecture", "unit", "sizes"), PARTS, ids=[f"{a.name}-{unit}" for a, unit, _ in PARTS])
def test_parts_of_attention(
    architecture: Architecture, unit: Freedom, sizes: tuple[int, ...], ratio: float | None
) -> None:
    groups = sc.groups(architecture.make(), example_inputs=architecture.inputs(2), unit=unit)
    assert sorted(group.units for group in groups.values()) == sorted(sizes), f"{architecture.note}\n{groups}"
    units = choose(groups, ratio, f"{architecture.name} {unit} {ratio}")
    if units:
        check(architecture, groups, units, 2, unit)


@pytest.mark.parametrize(
    "architecture",
    [a for a in ARCHITECTURES if a.consumer_law],
    ids=lambda architecture: architecture.name,
    indirect=True,
)
def test_without_their_readers_units_are_silent(architecture: Architecture) -> None:
    model, inputs = architecture.make(), architecture.inputs(2)
    groups = sc.groups(model, example_inputs=inputs)
    heard = {n: group for n, group in groups.items() if any(m.part == "in" for m in group.members)}
    units = choose(heard, 0.5, architecture.name)
    assert units, "no group has a reader"
    deaf = zeroed(model, slices(heard, units, ("in",)))
    noisy = zeroed(model, [])
    parameters = {clean(name): p for name, p in noisy.named_parameters(remove_duplicate=False)}
    with torch.no_grad():
        for name, dim, positions in slices(heard, units, ("out",)):
            if name in parameters:
                places = torch.tensor(positions, dtype=torch.long)
                louder = parameters[name].index_select(dim, places) * 1.5 + 0.1
                parameters[name].index_copy_(dim, places, louder)
    noisy = zeroed(noisy, slices(heard, units, ("in",)))
    expected = run(deaf, inputs)
    assert distance(expected, run(noisy, inputs)) <= architecture.tolerance
    assert distance(expected, run(zeroed(model, slices(heard, units)), inputs)) <= architecture.tolerance


@pytest.mark.parametrize("architecture", REFUSED, ids=lambda architecture: architecture.name)
def test_a_branch_on_data_is_refused_and_nothing_changes(architecture: Architecture) -> None:
    model, example = architecture.make(), architecture.inputs(3)
    before = snapshot(model)
    with pytest.raises(ValueError, match="decides by its data"):
        sc.groups(model, example_inputs=example)
    with pytest.raises(ValueError, match="decides by its data"):
        sc.shrink(model, units={"fc1.weight": [0]}, example_inputs=example)
    check_untouched(before, snapshot(model))


def test_a_branch_on_its_input_with_an_example_of_each_side() -> None:
    architecture = REFUSED[0]
    model = architecture.make()
    sides = [vectors(12)(2) + 1.0, vectors(12)(2) - 1.0]
    groups = sc.groups(model, example_inputs=sides)
    assert sorted(group.units for group in groups.values()) == [16, 24]
    units = choose(groups, 0.5, "branches")
    small, masked = sc.shrink(model, units=units, example_inputs=sides), zeroed(model, slices(groups, units))
    assert shapes(small) == narrowed(model, slices(groups, units))
    for inputs in sides:
        assert distance(run(masked, inputs), run(small, inputs)) <= architecture.tolerance
