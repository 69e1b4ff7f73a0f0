"""Every row of the table of attributes: the smaller layer computes what the larger one computes on the kept units."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateur.model.removal import Removal, remove

Kept = dict[str, dict[int, tuple[int, ...]]]


def without(size: int, *gone: int) -> tuple[int, ...]:
    return tuple(i for i in range(size) if i not in gone)


def rows(units: tuple[int, ...], size: int, gates: int) -> tuple[int, ...]:
    return tuple(g * size + u for g in range(gates) for u in units)


def sizes(module: nn.Module) -> dict[str, Any]:
    """Every public plain attribute."""
    return {k: v for k, v in vars(module).items() if k[0] != "_" and isinstance(v, (int, tuple)) and k != "training"}


# the attributes equal those of a layer built small
@pytest.mark.parametrize(
    ("large", "kept", "small"),
    [
        (nn.Linear(5, 4), {"weight": {0: (1, 3), 1: (0, 2, 4)}, "bias": {0: (1, 3)}}, nn.Linear(3, 2)),
        (nn.Bilinear(3, 4, 5), {"weight": {1: (0,), 2: (1, 2)}}, nn.Bilinear(1, 2, 5)),
        (nn.Conv1d(4, 6, 3), {"weight": {0: (0, 1), 1: (3,)}, "bias": {0: (0, 1)}}, nn.Conv1d(1, 2, 3)),
        (nn.Conv3d(4, 6, 2), {"weight": {1: (3, 1)}}, nn.Conv3d(2, 6, 2)),
        (nn.ConvTranspose2d(4, 6, 3), {"weight": {0: (0, 1), 1: (3,)}, "bias": {0: (3,)}}, nn.ConvTranspose2d(2, 1, 3)),
        (
            nn.BatchNorm2d(4),
            {n: {0: (0, 2)} for n in ("weight", "bias", "running_mean", "running_var")},
            nn.BatchNorm2d(2),
        ),
        (nn.BatchNorm1d(4, affine=False), {n: {0: (3,)} for n in ("running_mean", "running_var")}, None),
        (
            nn.SyncBatchNorm(4),
            {n: {0: (0, 2)} for n in ("weight", "bias", "running_mean", "running_var")},
            nn.SyncBatchNorm(2),
        ),
        (
            nn.InstanceNorm2d(4, affine=True),
            {"weight": {0: (0,)}, "bias": {0: (0,)}},
            nn.InstanceNorm2d(1, affine=True),
        ),
        (nn.LayerNorm((4, 3)), {"weight": {0: (0, 2)}, "bias": {0: (0, 2)}}, nn.LayerNorm((2, 3))),
        (nn.RMSNorm(4), {"weight": {0: (0, 2)}}, nn.RMSNorm(2)),
        (nn.GroupNorm(2, 8), {"weight": {0: (0, 1, 4, 5)}, "bias": {0: (0, 1, 4, 5)}}, nn.GroupNorm(2, 4)),
        (nn.Embedding(6, 4, padding_idx=3), {"weight": {0: (5, 3, 0), 1: (1, 2)}}, nn.Embedding(3, 2, padding_idx=1)),
        (nn.EmbeddingBag(6, 4), {"weight": {0: (5, 3, 0)}}, nn.EmbeddingBag(3, 4)),
        (nn.PReLU(4), {"weight": {0: (1, 2)}}, nn.PReLU(2)),
        (
            nn.LSTMCell(3, 4),
            {
                "weight_ih": {0: rows((0, 2), 4, 4), 1: (1,)},
                "weight_hh": {0: rows((0, 2), 4, 4), 1: (0, 2)},
                "bias_ih": {0: rows((0, 2), 4, 4)},
                "bias_hh": {0: rows((0, 2), 4, 4)},
            },
            nn.LSTMCell(1, 2),
        ),
        (nn.GRUCell(3, 4), {"weight_ih": {1: (1, 0)}}, nn.GRUCell(2, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_knows_its_new_sizes(large: nn.Module, kept: Kept, small: nn.Module | None) -> None:
    remove(large, Removal(kept))
    if small is None:
        assert large.num_features == 1
        return
    assert sizes(large) == sizes(small)
    assert repr(large) == repr(small)
    assert {n: t.shape for n, t in large.state_dict().items()} == {n: t.shape for n, t in small.state_dict().items()}


def test_the_transposed_linear_of_gpt2() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    layer = pytorch_utils.Conv1D(6, 4)
    x = torch.randn(2, 4)
    expected = layer(x * torch.tensor([1.0, 0, 1, 1]))[:, [5, 1]]
    remove(layer, Removal({"weight": {0: (0, 2, 3), 1: (5, 1)}, "bias": {0: (5, 1)}}))
    assert (layer.nx, layer.nf) == (3, 2)
    assert torch.allclose(layer(x[:, [0, 2, 3]]), expected, atol=1e-6)


def test_the_most_derived_type_decides_and_unknown_types_are_left_alone() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.width = 4

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))
            self.features, self.shape = 4, [4, 1]

    net = nn.Sequential(Scaled(), Own())
    kept = {name: {0: (0, 1)} for name in ("0.weight", "0.bias", "1.weight")}
    remove(net, Removal(kept, {"0": {"width": 2}, "1": {"shape": (2, 1)}}))
    assert (net[0].out_features, net[0].width, net[1].features, net[1].shape) == (2, 2, 4, [2, 1])


# grouped convolutions
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "kept_in", "kept_out", "after"),
    [
        (4, 4, 4, (0, 2, 3), (0, 2, 3), 3),  # depthwise
        (4, 4, 8, (1, 3), (2, 3, 6, 7), 2),  # depthwise, multiplier 2, whole groups
        (4, 4, 8, (0, 1, 2, 3), (0, 3, 5, 6), 4),  # depthwise, one of two outputs of each group
        (2, 4, 6, (0, 1, 2, 3), (0, 2, 3, 5), 2),  # equal parts of the outputs
        (2, 4, 6, (0, 3), (0, 1, 2, 3, 4, 5), 2),  # another input of each group
        (3, 6, 6, (0, 1, 4, 5), (0, 1, 4, 5), 2),  # a whole group
        (2, 4, 6, (0, 1), (0, 1, 2), 1),  # all groups but one
        (3, 6, 6, (4, 5, 0, 1), (4, 5, 0, 1), 2),  # the groups that stay change places
    ],
)
def test_groups_follow_from_which_channels_stay(
    dims: int,
    transposed: bool,
    groups: int,
    inputs: int,
    outputs: int,
    kept_in: tuple[int, ...],
    kept_out: tuple[int, ...],
    after: int,
) -> None:
    kinds = (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        if transposed
        else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    )
    if transposed:
        inputs, outputs, kept_in, kept_out = outputs, inputs, kept_out, kept_in
    layer = kinds[dims - 1](inputs, outputs, 2, groups=groups)
    x = torch.randn(2, inputs, *[3] * dims)
    alive = torch.zeros(inputs)
    alive[list(kept_in)] = 1
    expected = layer(x * alive.view(1, -1, *[1] * dims))[:, list(kept_out)]
    # rows of the weight are outputs (transposed: inputs); each group's other axis keeps its own local positions
    first, second = (kept_in, kept_out) if transposed else (kept_out, kept_in)
    size = (outputs if transposed else inputs) // groups
    local = {p // size: tuple(q % size for q in second if q // size == p // size) for p in second}
    kept: Kept = {"weight": {0: first}, "bias": {0: kept_out}}
    if len(set(local.values())) == 1:
        kept["weight"][1] = next(iter(local.values()))
    else:  # a different local index in each group: rows are brought into line first, as a tracer has to
        per_row = (inputs if transposed else outputs) // groups
        with torch.no_grad():
            for row in range(len(layer.weight)):
                order = [*local[row // per_row], *(i for i in range(size) if i not in local[row // per_row])]
                layer.weight[row] = layer.weight[row, order]
        kept["weight"][1] = tuple(range(len(next(iter(local.values())))))
    remove(layer, Removal(kept))
    assert (layer.groups, layer.in_channels, layer.out_channels) == (after, len(kept_in), len(kept_out))
    assert torch.allclose(layer(x[:, list(kept_in)]), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kept", "given", "message"),
    [
        ((0, 1, 4), None, "keeps 2 of group 0, 1 of group 1; every group that stays needs equally many"),
        ((0, 3, 1, 4), None, "next to each other"),
        ((0, 1, 2, 3), 3, "4 channels cannot stand in 3 equal groups"),
        ((0, 1, 3, 4), 0, "cannot stand in 0 equal groups"),
    ],
)
def test_unequal_groups_are_refused(kept: tuple[int, ...], given: int | None, message: str) -> None:
    layer = nn.Conv2d(4, 6, 1, groups=2)
    attributes = {} if given is None else {"": {"groups": given}}
    with pytest.raises(ValueError, match=message):
        remove(layer, Removal({"weight": {0: kept}, "bias": {0: kept}}, attributes))
    assert layer.weight.shape == (6, 2, 1, 1)
    assert layer.groups == 2


def test_groups_can_be_given() -> None:
    layer = nn.Conv2d(4, 8, 1, groups=4, bias=False)
    remove(layer, Removal({"weight": {0: (0, 2, 4, 6)}}, {"": {"groups": 2}}))
    assert (layer.groups, layer.in_channels, layer.out_channels) == (2, 2, 4)


def test_group_norm_keeps_equal_groups_or_is_told_how_many() -> None:
    norm, x = nn.GroupNorm(2, 6), torch.randn(2, 6, 3)
    expected = norm(x)[:, 3:]
    last = {"weight": {0: (3, 4, 5)}, "bias": {0: (3, 4, 5)}}
    with pytest.raises(ValueError, match=r"3 channels cannot stand in 2 equal groups; keep a multiple of 2, or give"):
        remove(norm, Removal(last))
    remove(norm, Removal(last, {"": {"num_groups": 1}}))
    assert torch.allclose(norm(x[:, 3:]), expected, atol=1e-6)


def test_the_padding_row_cannot_be_lost() -> None:
    table = nn.Embedding(5, 2, padding_idx=4)
    with pytest.raises(ValueError, match="removes row 4, its padding_idx"):
        remove(table, Removal({"weight": {0: (0, 1)}}))
    remove(table, Removal({"weight": {0: (0, 1)}}, {"": {"padding_idx": 0}}))
    assert table.padding_idx == 0


@given(st.data())
def test_a_grouped_convolution_is_right_or_refused(data: st.DataObject) -> None:
    """Any rows at all: the result either computes the kept rows of the large layer, or nothing has changed."""
    groups, per = data.draw(st.sampled_from([(2, 3), (3, 2), (4, 1)]))
    kept = tuple(data.draw(st.lists(st.integers(0, groups * per - 1), min_size=1, unique=True)))
    torch.manual_seed(0)
    layer = nn.Conv1d(groups * 2, groups * per, 1, groups=groups)
    x = torch.randn(2, groups * 2, 3)
    expected = layer(x)
    try:
        remove(layer, Removal({"weight": {0: kept}, "bias": {0: kept}}))
    except ValueError:
        assert torch.equal(layer(x), expected)
        return
    present = list(dict.fromkeys(k // per for k in kept))
    inputs = [2 * g + i for g in present for i in range(2)]
    assert torch.allclose(layer(x[:, inputs]), expected[:, list(kept)], atol=1e-6)
    assert prod(layer.weight.shape) == 2 * len(kept)
