"""Masks of coupled groups: keys are groups, the mapping is of parameters, neighbours share tensors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.core.unit_channel import Channel
from secateur.model.masks import Masks, find_masks, register_masks
from secateur.types import KeyLayout
from tests.oracles.channel_nets import CHAIN, Chain, expand_slowly, member, parameters_of


def make(seed: int = 0, *, undo: bool = True) -> tuple[Chain, Masks]:
    net = Chain(seed)
    layout = parameters_of(CHAIN, net)
    ones = {group: torch.ones(key.shape, dtype=torch.bool) for group, key in layout.items()}
    masks = Masks(net, ones, Channel(), layout, undo=undo)
    register_masks(net, masks)
    return net, masks


def without(size: int, *gone: int) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[list(gone)] = False
    return mask


def values(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def expected(before: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    slow = expand_slowly(masks.unit_masks, masks.layout)
    return {name: torch.where(slow[name], tensor, 0.0) if name in slow else tensor for name, tensor in before.items()}


def same(net: nn.Module, wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, wanted[name]) for name, tensor in net.state_dict().items())


def test_a_shared_tensor_has_what_both_its_groups_leave():
    net, masks = make()
    before = values(net)
    masks.update({"conv1.weight": without(6, 1, 4)})
    assert same(net, expected(before, masks))
    masks.update({"conv2.weight": without(4, 0), "fc1.weight": without(8, 2, 3, 5)})
    assert same(net, expected(before, masks))
    assert masks["conv2.weight"].sum() == 3 * 4 * 9
    assert masks.kept("conv2.weight") == 108
    assert [masks.kept(name) for name in ("conv1.bias", "bn.bias")] == [4, 4]


def test_a_unit_that_returns_brings_back_what_no_other_group_removes():
    net, masks = make()
    before = values(net)
    masks.update({"conv1.weight": without(6, 1), "conv2.weight": without(4, 0)})
    masks.update({"conv1.weight": without(6)})
    assert torch.equal(net.conv1.weight, before["conv1.weight"])
    assert torch.equal(net.conv2.weight[1:], before["conv2.weight"][1:])
    assert torch.count_nonzero(net.conv2.weight[0]) == 0  # its element [0, 1] too, which both had removed
    masks.update({"conv2.weight": without(4)})
    assert same(net, before)


def test_masks_hold_through_training_and_find_what_grows_back():
    net, masks = make()
    masks.update({"conv1.weight": without(6, 0, 5), "fc1.weight": without(8, 7)})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    masks.attach(optimizer)
    for _ in range(3):
        F.cross_entropy(net(torch.randn(4, 2, 3, 3)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        masks.check()
    assert net.bn.bias.grad[[0, 5]].tolist() == [0.0, 0.0]
    assert float(net.bn.running_mean[0]) != 0.0  # a buffer, left alone
    with torch.no_grad():
        net.bn.bias[5] = 0.5
    with pytest.raises(ValueError, match=r"1 removed weights of 'bn\.bias' are no longer zero"):
        masks.check()
    masks.apply()
    masks.check()


def test_loading_a_dense_checkpoint_masks_it_again():
    net, masks = make()
    masks.update({"conv2.weight": without(4, 1, 2)})
    other = values(Chain(5))
    net.load_state_dict(other)
    assert same(net, expected(other, masks))
    masks.undo()
    assert same(net, other)


def test_a_checkpoint_of_masks_goes_to_another_model():
    net, masks = make()
    before = values(net)
    masks.update({"conv1.weight": without(6, 1), "fc1.weight": without(8, 0, 1)})
    target, others = make()
    others.update({"conv2.weight": without(4, 3)})
    others.load_state_dict(copy.deepcopy(masks.state_dict()))
    assert all(torch.equal(others.unit_masks[group], masks.unit_masks[group]) for group in CHAIN)
    assert all(torch.equal(others[name], masks[name]) for name in masks)
    others.undo()
    assert same(target, before)


def test_more_groups_join_and_a_changed_group_is_refused():
    net = Chain()
    before = values(net)
    layout = parameters_of(CHAIN, net)
    one = {"conv1.weight": layout["conv1.weight"]}
    masks = Masks(net, {"conv1.weight": without(6, 0)}, Channel(), one)
    masks.apply()
    assert set(masks) == {"conv1.weight", "conv1.bias", "bn.weight", "bn.bias", "conv2.weight"}
    masks.add(layout)
    assert "fc2.weight" in masks
    assert same(net, expected(before, masks))
    masks.update({"conv2.weight": without(4, 2)})
    assert same(net, expected(before, masks))
    with pytest.raises(ValueError, match=r"group 'fc1\.weight' couples other slices"):
        masks.add({"fc1.weight": KeyLayout((8,), "group", members=(member("fc1.weight", (8, 36), 0, "out"),))})
    masks.undo()
    assert same(net, before)


def test_refusals_name_the_group_and_the_member():
    net, masks = make()
    before = values(net)
    for wrong, message in (
        ({"fc2.weight": without(3, 0)}, r"mask for 'fc2\.weight': these masks are of"),
        ({"fc1.weight": without(9, 0)}, r"has shape \(9,\); unit 'channel' of a group of units \(8,\) needs \(8,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            masks.update(wrong)
    assert same(net, before)
    with pytest.raises(ValueError, match=r"member 'bn\.running_mean', and Chain has no such parameter"):
        Masks(Chain(), {"conv1.weight": without(6)}, Channel(), CHAIN)
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="Sequential has no such parameter"):
        Masks(other, {"fc1.weight": without(8)}, Channel(), CHAIN)


class Tied(nn.Module):
    """An embedding whose table is the head's weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.RMSNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(tokens)))


def test_members_go_by_any_name_of_a_tied_parameter():
    net = Tied()
    before = values(net)
    members = (member("head.weight", (7, 4), 1, "out"), member("norm.weight", (4,), 0, "follows"))
    masks = Masks(net, {"stream": without(4, 2)}, Channel(), {"stream": KeyLayout((4,), "group", members=members)})
    masks.apply()
    assert list(masks) == ["embed.weight", "norm.weight"]
    assert net.embed.weight is net.head.weight
    assert torch.count_nonzero(net.head.weight[:, 2]) == 0
    masks.undo()
    assert same(net, before)


def test_a_copy_is_plain_and_pickles_without_masks():
    net, masks = make()
    masks.update({"conv1.weight": without(6, 3)})
    for clone in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert find_masks(clone) is None
        assert same(clone, values(net))
