"""A copy of a pruned model has no masks; what was measured must say so."""

from __future__ import annotations

import copy

import torch
from torch import nn

from secateur.measure import measure
from secateur.train import prune


def test_a_copy_without_its_masks_is_noticed() -> None:
    dense = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    pruned = copy.deepcopy(dense)
    prune(pruned, 0.9)
    x = torch.zeros(2, 8)
    notes = measure(dense, copy.deepcopy(pruned), example_inputs=x, batches=()).notes
    assert any("this model has no masks (a deepcopy has none)" in note for note in notes)
    assert not any("no masks" in note for note in measure(dense, pruned, example_inputs=x, batches=()).notes)
