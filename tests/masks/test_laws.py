"""What holds for all masks: parameter masks are expanded unit masks, shares are counts, packing is a bijection."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.core.bit_masks import BitMasks
from secateur.core.units import parse_unit
from secateur.model.masks import Masks
from secateur.model.packed import PackedMasks
from secateur.model.targets import find_targets

UNITS = ("weight", "filter", "kernel", "block(2, 2)", "in_channel")


class Case(NamedTuple):
    model: nn.Module
    unit: str
    masks: Masks
    unit_masks: dict[str, Tensor]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(st.integers(1, 2))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    conv = nn.Conv2d(inputs, outputs, (draw(st.integers(1, 3)), draw(st.integers(1, 3))), groups=groups)
    linear = nn.Linear(draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    model = nn.ModuleDict({"conv": conv, "linear": linear})
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1.0)
    unit = draw(st.sampled_from(UNITS))
    layout = find_targets(model)
    unit_masks: dict[str, Tensor] = {}
    for name, key in layout.items():
        grid = parse_unit(unit)[0].grid(key)
        size = math.prod(grid)
        drawn = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        unit_masks[name] = torch.tensor(drawn, dtype=torch.bool).view(grid)
    return Case(model, unit, Masks(model, unit_masks, parse_unit(unit)[0], layout), unit_masks)


def unit_of(unit: str, index: tuple[int, ...], shape: tuple[int, ...], groups: int) -> tuple[int, ...]:
    """The unit that a weight belongs to, by the definitions and by loops alone."""
    out, inp, *kernel = index
    if unit == "weight":
        return index
    if unit == "filter":
        return (out,)
    if unit == "kernel":
        return (out, inp)
    if unit == "in_channel":
        return (out // (shape[0] // groups) * shape[1] + inp,)
    column = inp
    for position, size in zip(kernel, shape[2:], strict=True):
        column = column * size + position
    return (out // 2, column // 2)


def brute_force(case: Case) -> dict[str, Tensor]:
    expected: dict[str, Tensor] = {}
    for name, key in case.masks.layout.items():
        expected[name] = torch.zeros(key.shape, dtype=torch.bool)
        for index in (
            torch.cartesian_prod(*(torch.arange(size) for size in key.shape)).view(-1, len(key.shape)).tolist()
        ):
            unit = unit_of(case.unit, tuple(index), key.shape, key.groups)
            expected[name][tuple(index)] = case.unit_masks[name][unit]
    return expected


@settings(max_examples=40)
@given(cases())
def test_parameter_masks_are_the_expanded_unit_masks(case: Case) -> None:
    expected = brute_force(case)
    expanded = parse_unit(case.unit)[0].expand(case.unit_masks, case.masks.layout)
    for name in case.unit_masks:
        assert torch.equal(case.masks[name], expected[name])
        assert torch.equal(case.masks[name], expanded[name])
        assert case.masks.kept(name) == int(expected[name].sum())
    case.masks.apply()
    for name, mask in expected.items():
        assert torch.equal(case.model.get_parameter(name) == 1, mask)


@settings(max_examples=40)
@given(cases())
def test_shares_are_counts(case: Case) -> None:
    expected = brute_force(case)
    units = [kept for mask in case.unit_masks.values() for kept in mask.flatten().tolist()]
    weights = [kept for mask in expected.values() for kept in mask.flatten().tolist()]
    everything = sum(parameter.numel() for parameter in case.model.parameters())
    shares = case.masks.shares()
    assert math.isclose(shares.units, units.count(False) / len(units), abs_tol=1e-12)
    assert math.isclose(shares.target_weights, weights.count(False) / len(weights), abs_tol=1e-12)
    assert math.isclose(shares.all_parameters, weights.count(False) / everything, abs_tol=1e-12)


@settings(max_examples=40)
@given(cases())
def test_packing_and_checkpoints_are_bijections(case: Case) -> None:
    expected = brute_force(case)
    packed = PackedMasks(BitMasks(expected.items()))
    for name, mask in expected.items():
        assert torch.equal(packed.unpack(name), mask)
        assert packed.bits[name].numel() == math.ceil(mask.numel() / 8)
        flat = mask.flatten().tolist()
        assert packed.bits[name].tolist() == [
            sum(kept << bit for bit, kept in enumerate(flat[first : first + 8])) for first in range(0, len(flat), 8)
        ]
    dense = {name: torch.ones_like(mask) for name, mask in case.unit_masks.items()}
    case.masks.apply()
    state = case.masks.state_dict()
    case.masks.update(dense)
    assert all(bool((parameter == 1).all()) for parameter in case.model.parameters())
    case.masks.load_state_dict(state)
    assert all(torch.equal(case.masks.unit_masks[name], mask) for name, mask in case.unit_masks.items())
    assert all(torch.equal(case.masks[name], mask) for name, mask in expected.items())
    case.masks.undo()
    assert all(bool((parameter == 1).all()) for parameter in case.model.parameters())
