"""Which parameters are targets, and what is said when a selector is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.model.targets import find_targets


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.depth = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, groups=2)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(4, 5)


def test_default_targets_are_convolutions_linear_layers_and_attention_projections():
    found = find_targets(Net())
    assert list(found) == [
        "conv1.weight",
        "depth.weight",
        "up.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.weight",
    ]
    assert [k.kind for k in found.values()] == ["conv", "conv", "conv_transpose", "linear", "linear", "linear"]
    assert [k.role for k in found.values()] == ["first", "depthwise", "hidden", "hidden", "hidden", "output"]
    assert found["up.weight"].groups == 2
    assert found["up.weight"].shape == (8, 2, 2, 2)


@pytest.mark.parametrize("unit", ["filter", "layer"])
def test_units_that_remove_outputs_leave_the_output_layer_alone(unit: str):
    assert "head.weight" not in find_targets(Net(), unit=unit)
    assert "head.weight" in find_targets(Net(), "head", unit=unit), "asked for by name, it is a target"


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("conv1.weight", ["conv1.weight"]),
        ("conv1", ["conv1.weight"]),
        ("attention", ["attention.in_proj_weight", "attention.out_proj.weight"]),
        ("*.out_proj", ["attention.out_proj.weight"]),
        ("att*", ["attention.in_proj_weight", "attention.out_proj.weight"]),
        (nn.Conv2d, ["conv1.weight", "depth.weight"]),
        ([nn.Embedding, "head"], ["embed.weight", "head.weight"]),
    ],
)
def test_selectors(selector: object, expected: list[str]):
    assert list(find_targets(Net(), selector)) == expected  # type: ignore[arg-type]


def test_a_module_selects_what_it_holds():
    net = Net()
    assert list(find_targets(net, net.attention)) == ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert list(find_targets(net, exclude=[net.attention, nn.Conv2d])) == ["up.weight", "head.weight"]


def test_what_matches_nothing_is_an_error_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"targets='con1'.*Did you mean 'conv1'"):
        find_targets(Net(), "con1")
    with pytest.raises(ValueError, match=r"exclude='haed'.*'head'"):
        find_targets(Net(), exclude="haed")
    with pytest.raises(ValueError, match="Conv3d"):
        find_targets(Net(), nn.Conv3d)
    with pytest.raises(ValueError, match="matches nothing"):
        find_targets(Net(), nn.Linear(2, 2))


def test_excluding_a_parameter_that_is_no_target_is_no_misspelling():
    assert "head.weight" in find_targets(Net(), exclude="norm.weight")


def test_nothing_left_and_vectors_are_refused():
    with pytest.raises(ValueError, match="nothing to prune"):
        find_targets(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match=r"'norm.bias' has shape \(4,\)"):
        find_targets(Net(), "norm.bias")


def test_a_head_tied_to_an_embedding_stays_dense_unless_asked_for():
    net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6, bias=False))
    net[2].weight = net[0].weight
    assert list(find_targets(net)) == ["1.weight"]
    assert list(find_targets(net, "2.weight")) == ["0.weight"]
    with pytest.raises(ValueError, match=r"same tensor .*tied"):
        find_targets(net, ["2.weight", "1.weight"], exclude="0.weight")


def test_tied_linear_layers_are_one_target():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    assert list(find_targets(net)) == ["0.weight"]


def test_wrappers_are_looked_through():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    assert list(find_targets(torch.compile(net))) == ["0.weight", "1.weight"]  # type: ignore[arg-type]
    assert list(find_targets(nn.DataParallel(net))) == ["0.weight", "1.weight"]


def test_layers_with_a_computed_weight_are_named_not_overlooked():
    net = nn.Sequential(nn.Linear(3, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    with pytest.warns(UserWarning, match=r"'1' stay dense: the weight is computed by a parametrization"):
        assert list(find_targets(net)) == ["0.weight"]


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match=r"a model is a torch.nn.Module; this is list"):
        find_targets([1])  # type: ignore[arg-type]


@pytest.mark.parametrize("selector", ["weight_*", nn.LSTM, ["weight_ih_l0", "weight_hh_l0"]])
def test_weights_that_are_no_default_targets_can_be_named_all_the_same(selector: object):
    net = nn.LSTM(3, 4)
    found = find_targets(net, selector)  # type: ignore[arg-type]
    assert {name: key.shape for name, key in found.items()} == {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4)}
    with pytest.raises(ValueError, match="name the parameters with targets="):
        find_targets(net)
    with pytest.raises(ValueError, match="Prunable parameters: weight_ih_l0, weight_hh_l0"):
        find_targets(net, "wieght")


def test_a_module_that_holds_default_targets_selects_those_alone():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(1, 5, 4))
            self.fc = nn.Linear(4, 4)

    net = nn.ModuleDict({"block": Block()})
    assert list(find_targets(net, "block")) == ["block.fc.weight"]
    assert list(find_targets(net, "block.position")) == ["block.position"]
