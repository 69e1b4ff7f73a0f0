from __future__ import annotations

import torch
from torch import nn

import secateur as sc


def test_layers_whose_outputs_lost_all_inputs_are_told() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Conv2d(1, 2, 2), nn.ConvTranspose2d(2, 3, 1))
    net[0].weight.data = torch.tensor([[0.1, 0.1, 0.1], [1.0, 0.1, 0.1], [0.1, 0.1, 0.1], [2.0, 3.0, 0.1]])
    net[2].weight.data = torch.full((2, 4), 0.01)
    net[4].weight.data = torch.tensor([[5.0, 0.0, 1.0], [5.0, 0.0, 0.0]]).reshape(2, 3, 1, 1)
    masks = sc.prune(net, 20 / 26, targets=["0", "2", "4"], min_density=None)
    lines = str(masks).splitlines()
    assert "2 of 4 outputs without inputs" in lines[1]
    assert "no output has inputs: the layer passes nothing on" in lines[2]
    assert "1 of 3 outputs without inputs" in lines[3]
    masks.undo()
    kept = sc.prune(net, 0.5, unit="filter", targets=["0"])
    assert "inputs" not in str(kept)
