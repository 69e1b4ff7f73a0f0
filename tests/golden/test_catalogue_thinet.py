"""The catalogue's worked numbers for ThiNet."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.criteria.reconstruction import kept_scales

W21 = torch.tensor([[1.0, -1.0, 0.2, 2.0], [0.5, -0.4, -0.1, 1.0], [2.0, -1.8, 0.1, -1.0]], dtype=torch.float64)


def test_w21_thinet() -> None:
    net = nn.Linear(4, 1, bias=False).double()
    nn.init.ones_(net.weight)
    scores = sc.score(net, "thinet", unit="in_channel", data=[W21])["weight"]
    assert (4 * scores).tolist()[1:3] == [1.0, 0.0], "2 first, then 1: it undoes what 0 adds"
    first, both = W21[:, 2].square().sum(), W21[:, [1, 2]].sum(1).square().sum()
    assert (float(first), float(both)) == (pytest.approx(0.06), pytest.approx(3.78))
    assert W21.square().sum(0).tolist() == pytest.approx([5.25, 4.4, 0.06, 6.0])
    masks = sc.prune(net, 0.5, criterion="thinet", unit="in_channel", data=[W21])
    assert net.weight.tolist() == [[1.0, 0.0, 0.0, 1.0]]
    scales = kept_scales(W21.t() @ W21, masks.unit_masks["weight"].flatten())
    assert scales.tolist() == pytest.approx([0.152, 0.0, 0.0, 1.004], abs=5e-4)
