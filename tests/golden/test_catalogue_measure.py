"""Catalogue A 9: the worked numbers [N] D1 to D6, to the digits printed there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.measure import agreement, count, effective, evaluate, expected_calibration_error, fraction_to_keep, table
from tests.measure.networks import CifarResNet, conv_names, lenet5_caffe, lenet_300_100, mask_of, vgg16


def tenth(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    weights = dict(model.named_parameters())
    return {name: mask_of(weights[name], weights[name].numel() // 10) for name in names}


def test_d1_lenet_300_100_all_matrices_and_classifier_dense() -> None:
    net, x = lenet_300_100(), torch.zeros(1, 1, 28, 28)
    every = count(net, x, masks=tenth(net, ["1.weight", "3.weight", "5.weight"]))
    assert (every.parameters, every.macs) == (266_610, 266_200)
    assert round(every.compression, 6) == 9.863485
    assert every.speedup == 10
    hidden = count(net, x, masks=tenth(net, ["1.weight", "3.weight"]))
    assert (round(hidden.compression, 6), round(hidden.speedup, 6)) == (9.545650, 9.672965)


def test_d1_shrinkbench_finds_the_same_where_the_zeros_are_those_of_the_masks() -> None:
    net, x = lenet_300_100(), torch.zeros(1, 1, 28, 28)
    masks = tenth(net, ["1.weight", "3.weight", "5.weight"])
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_parameter(name).copy_(mask.float())
    found = count(net, x, compat="shrinkbench")
    assert (round(found.compression, 6), found.speedup) == (9.863485, 10)


def test_d1_fraction_to_keep_with_the_classifier_excluded() -> None:
    assert round(fraction_to_keep(10, total=266_610, prunable=235_200 + 30_000 + 400), 7) == 0.0965776


@pytest.mark.parametrize(
    ("pruned", "compression", "speedup"),
    [(["5.weight"], 6.0647, 1.1862), (["0.weight", "2.weight"], 1.0562, 3.8616)],
    ids=["only-fc1", "only-convolutions"],
)
def test_d1_lenet_5_caffe(pruned: list[str], compression: float, speedup: float) -> None:
    net, x = lenet5_caffe(), torch.zeros(1, 1, 28, 28)
    found = count(net, x, masks=tenth(net, pruned))
    assert found.parameters == 431_080
    assert [row.macs for row in found.layers] == [288_000, 1_600_000, 400_000, 5_000]
    assert found.macs == 2_293_000
    assert (round(found.compression, 4), round(found.speedup, 4)) == (compression, speedup)


def test_d1_shrinkbench_counts_every_convolution_as_same() -> None:
    rows = count(lenet5_caffe(), torch.zeros(1, 1, 28, 28), compat="shrinkbench").layers
    assert rows[0].macs == 392_000


def test_d1b_a_fresh_resnet_20_seems_pruned_to_shrinkbench() -> None:
    net, x = CifarResNet(3), torch.zeros(1, 3, 32, 32)
    theirs, ours = count(net, x, compat="shrinkbench"), count(net, x)
    assert theirs.parameters - theirs.kept == 688
    assert round(theirs.compression, 6) == 1.002557
    assert ours.compression == 1


@pytest.mark.parametrize(
    ("variant", "head", "pooled", "size", "norm", "parameters", "macs", "last", "conv5"),
    [
        ("conv-only", (), 7, 224, False, 14_714_688, 15_346_630_656, (48.11, 9.04), (48.11, 9.04)),
        ("conv-only", (), 1, 32, False, 14_714_688, 313_196_544, (48.11, 9.04), (48.11, 9.04)),
        ("imagenet", (4096, 4096, 1000), 7, 224, False, 138_357_544, 15_470_264_320, (89.36, 0.80), (5.12, 8.97)),
        ("cifar-bn", (10,), 1, 32, True, 14_728_266, 313_201_664, (32.08, 6.03), (48.07, 9.04)),
        ("cifar-head", (512, 10), 1, 32, False, 14_982_474, 313_463_808, (17.54, 3.10), (47.25, 9.03)),
    ],
)
def test_d2_vgg16_chart(variant, head, pooled, size, norm, parameters, macs, last, conv5) -> None:
    with torch.device("meta"):  # 138 M parameters and 15 G multiply-adds, none of them made
        net, x = vgg16(head, pooled, norm), torch.zeros(1, 3, size, size)
    rows = table(net, x)
    counted = [share for share in rows if share.row.macs]
    assert sum(share.row.parameters for share in rows) == parameters, variant
    assert sum(share.row.macs for share in rows) == macs
    assert sum(share.parameters for share in rows) == pytest.approx(1)

    def percent(shares: list) -> tuple[float, float]:
        return round(100 * sum(s.parameters for s in shares), 2), round(100 * sum(s.macs for s in shares), 2)

    assert percent(counted[-3:]) == last
    assert percent([s for s in counted if s.row.name in conv_names(net)[-3:]]) == conv5


@pytest.mark.parametrize(
    ("n", "option", "parameters", "macs"),
    [
        (3, "A", 269_722, 40_551_040),
        (3, "B", 272_474, 40_813_184),
        (9, "A", 853_018, 125_485_696),
        (9, "B", 855_770, 125_747_840),
    ],
)
def test_d3_cifar_resnets(n: int, option: str, parameters: int, macs: int) -> None:
    found = count(CifarResNet(n, option), torch.zeros(1, 3, 32, 32))
    assert (found.parameters, found.macs) == (parameters, macs)


def test_d4_calibration_error_by_hand_and_through_a_model() -> None:
    confidence = torch.tensor([0.95, 0.85, 0.75, 0.55, 0.65, 0.99], dtype=torch.float64)
    correct = torch.tensor([1, 1, 0, 1, 0, 1])
    assert round(expected_calibration_error(confidence, correct, bins=5), 6) == 0.343333
    logits = torch.stack([torch.log(confidence), torch.log(1 - confidence)], dim=1)
    found = evaluate(nn.Identity(), (logits, 1 - correct), bins=5)
    assert round(found.ece, 6) == 0.343333
    assert found.top1 == pytest.approx(4 / 6)
    right = np.array([0.95, 0.85, 0.25, 0.55, 0.35, 0.99])
    assert found.nll == pytest.approx(-np.log(right).mean())


def test_d5_direct_and_effective_compression() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    first = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]]).bool()
    last = torch.tensor([[0, 1, 1], [0, 0, 0]]).bool()
    found = effective(net, {"0.weight": first, "2.weight": last})
    assert (found.direct, found.effective) == (5, 3)
    assert (found.direct_compression, found.effective_compression) == (3.0, 5.0)


def test_d6_agreement_and_negative_flips() -> None:
    class Says(nn.Module):
        def __init__(self, classes: list[int]) -> None:
            super().__init__()
            self.logits = nn.functional.one_hot(torch.tensor(classes), 3) * 4.0

        def forward(self, x: Tensor) -> Tensor:
            return self.logits[x]

    x, y = torch.arange(6), torch.tensor([0, 1, 2, 1, 1, 0])
    dense, sparse = Says([0, 1, 2, 2, 1, 0]), Says([0, 1, 1, 2, 1, 2])
    found = agreement(dense, sparse, (x, y))
    assert round(found.agreement, 4) == 0.6667
    assert round(found.negative_flips, 4) == 0.3333
    assert round(evaluate(dense, (x, y)).top1, 4) == 0.8333
    assert evaluate(sparse, (x, y)).top1 == 0.5
