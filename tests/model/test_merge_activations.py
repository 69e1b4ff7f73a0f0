"""Merging removed channels into kept ones: exact where activations are affine in each other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.model.merge_activations import merge_activations


class Planted(nn.Module):
    """Channels 3 = 2 x 0, 4 = 1 + 0.7 behind the ReLU (1 is positive everywhere), 5 constant; then conv, pool, head."""

    def __init__(self, bias: bool = True, padding: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 3, bias=bias, padding=padding)
        self.head = nn.Linear(4, 3)
        self.double().eval()
        with torch.no_grad():
            self.first.weight[3], self.first.bias[3] = 2 * self.first.weight[0], 2 * self.first.bias[0]
            self.first.bias[1] = 9.0
            self.first.weight[4], self.first.bias[4] = self.first.weight[1], self.first.bias[1] + 0.7
            self.first.weight[5], self.first.bias[5] = 0.0, 1.5

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(F.relu(self.norm(self.first(x)))).mean((2, 3)))


def data() -> Tensor:
    return torch.randn(20, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def cut(net: nn.Module, count: int = 3, total: int = 6) -> sc.Masks:
    call = {"unit": "channel", "targets": "first", "data": [data()], "example_inputs": data()[:2]}
    return sc.prune(net, count / total, criterion="activation_correlation", **call)


def test_planted_copies_merge_exactly() -> None:
    net, x = Planted(), data()
    before, old = net(x), {name: value.clone() for name, value in net.state_dict().items()}
    masks = cut(net)
    assert not torch.allclose(net(x), before, atol=1e-3)
    fits = merge_activations(masks, [x])
    assert list(fits) == [("first.weight", "second.weight")]
    torch.testing.assert_close(net(x), before)
    masks.check()
    small = sc.shrink(net, example_inputs=x)
    torch.testing.assert_close(small(x), before)
    masks.undo()
    assert all(torch.equal(value, old[name]) for name, value in net.state_dict().items())


def test_one_copy_of_each_pair_and_the_constant_went() -> None:
    masks = cut(Planted())
    kept = masks.unit_masks["first.weight"]
    assert int(kept[[0, 3]].sum()) == int(kept[[1, 4]].sum()) == 1
    assert not bool(kept[5])
    assert bool(kept[2])


def test_the_fit_is_least_squares_on_what_the_reader_reads() -> None:
    net, x = Planted(), data()
    masks = cut(net, 4)
    with torch.no_grad():
        masks.restore_values()
        read = F.relu(net.norm(net.first(x))).movedim(1, 0).flatten(1)
        masks.apply()
    weight, bias = net.second.weight.clone(), net.second.bias.clone()
    masks.restore_values()
    dense = net.second.weight.detach().clone()
    masks.apply()
    fits = merge_activations(masks, [x])["first.weight", "second.weight"]
    kept = masks.unit_masks["first.weight"]
    for removed, partner, alpha, beta in zip(
        *(part.tolist() for part in (fits.removed, fits.partner, fits.alpha, fits.beta)), strict=True
    ):
        assert not bool(kept[removed])
        if removed == partner:
            assert (alpha, beta) == (0.0, pytest.approx(float(read[removed].mean())))
        else:
            design = torch.stack([read[partner], torch.ones_like(read[0])], 1)
            slow = torch.linalg.lstsq(design, read[removed][:, None]).solution.flatten()
            assert (alpha, beta) == (pytest.approx(float(slow[0])), pytest.approx(float(slow[1])))
        if removed != partner:
            weight[:, partner] += alpha * dense[:, removed]
        bias += beta * dense[:, removed].sum((1, 2))
    torch.testing.assert_close(net.second.weight, weight)
    torch.testing.assert_close(net.second.bias, bias)


def test_without_a_bias_the_fit_goes_through_the_origin() -> None:
    net, x = Planted(bias=False), data()
    masks = cut(net)
    with torch.no_grad():
        masks.restore_values()
        read = F.relu(net.norm(net.first(x))).movedim(1, 0).flatten(1)
        masks.apply()
    fits = merge_activations(masks, [x])["first.weight", "second.weight"]
    assert 5 in fits.removed.tolist(), "the constant one too: there is no bias to take it"
    for removed, partner, alpha in zip(fits.removed.tolist(), fits.partner.tolist(), fits.alpha.tolist(), strict=True):
        slow = torch.linalg.lstsq(read[partner][:, None], read[removed][:, None]).solution
        assert alpha == pytest.approx(float(slow))
    assert fits.beta.tolist() == [0.0] * 3


def test_beside_zero_padding_slopes_are_exact_and_offsets_are_not() -> None:
    net, x = Planted(padding=1), data()
    before = net(x)
    masks = cut(net)
    pruned = float((net(x) - before).norm().detach())
    merge_activations(masks, [x])
    assert 1e-6 < float((net(x) - before).norm().detach()) < pruned / 2


class Joined(nn.Module):
    """Two layers side by side, read by one; in each, units 2 and 3 are 2 and 3 times unit 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)
        self.double()
        with torch.no_grad():
            for layer in (self.left, self.right):
                for unit in (2, 3):
                    layer.weight[unit], layer.bias[unit] = unit * layer.weight[0], unit * layer.bias[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(torch.cat([self.left(x), self.right(x)], 1)))


def test_one_layer_that_reads_two_groups() -> None:
    net, x = Joined(), torch.randn(30, 3, dtype=torch.float64)
    before = net(x)
    masks = sc.prune(net, 0.5, criterion="activation_correlation", unit="channel", data=[x], example_inputs=x)
    assert [mask.tolist() for mask in masks.unit_masks.values()] == [[False, True, False, True]] * 2
    assert list(merge_activations(masks, [x])) == [("left.weight", "head.weight"), ("right.weight", "head.weight")]
    torch.testing.assert_close(net(x), before)
    merge_activations(masks, [x])  # of the dense model again, not of the merged one
    torch.testing.assert_close(net(x), before)
    y = torch.randint(0, 2, (30,))
    call = {"unit": "channel", "example_inputs": x, "data": (x, y), "loss": F.cross_entropy}
    scores = sc.score(net, "head_importance", **call)
    assert all(score[~masks.unit_masks[name]].eq(0).all() for name, score in scores.items())
    assert all(score[masks.unit_masks[name]].gt(0).all() for name, score in scores.items())


def test_what_cannot_merge_is_said() -> None:
    net, x = Planted(), data()
    masks = sc.prune(net, 0.5, unit="filter", targets="first")
    with pytest.raises(ValueError, match="unit 'filter' have no coupled channels"):
        merge_activations(masks, [x])
    masks.undo()
    masks = cut(net)
    masks.commit()
    with pytest.raises(ValueError, match="removed values are gone"):
        merge_activations(masks, [x])
