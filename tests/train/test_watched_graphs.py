"""Watched trainings that freeze parts, wait with their backward pass, compute parts again, or go on elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import secateur as sc
from secateur.core.units import parse_unit
from secateur.model.evidence import TrainingPasses, streamers
from secateur.model.targets import find_targets


def watching(net: nn.Module, kind: str, unit: str = "filter") -> TrainingPasses:
    passes = TrainingPasses(net, lambda: streamers(net, [kind], find_targets(net), parse_unit(unit)[0]))
    passes.watch(True)
    return passes


def test_what_is_frozen_in_eval_mode_is_read_as_it_runs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.9), nn.ReLU(), nn.Linear(6, 2))
    net[1].eval()
    passes, x = watching(net, "activation_zeros"), torch.randn(64, 4)
    net(x)
    expected = (net[:3](x) == 0).double().mean(0)
    assert torch.equal(passes.evidence()["activation_zeros"]["0.weight"], expected)
    assert not net[1].training


def test_a_look_at_another_way_leaves_a_waiting_graph_alone():
    """The second pass runs other operators, so it is looked at while the first one's graph holds the buffer."""

    class Ways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
            self.register_buffer("scale", torch.full((4,), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x)) * self.scale
            return self.second(torch.relu(x) if len(x) > 4 else torch.relu(x + 0.0))

    torch.manual_seed(0)
    net = Ways()
    passes = watching(net, "activation_mean")
    (net(torch.randn(8, 4)).sum() + net(torch.randn(3, 4)).sum()).backward()
    assert passes.passes == 2
    assert int(net.norm.num_batches_tracked) == 2


def test_a_checkpoint_of_a_pruner_with_data_goes_on_without():
    plan = sc.Plan(0.5, criterion="wanda", begin=2, end=4, schedule="linear")
    state = sc.Pruner(nn.Linear(4, 2), plan, data=torch.randn(8, 4)).state_dict()
    after = sc.Pruner(net := nn.Linear(4, 2), plan)
    after.load_state_dict(state)
    for _ in range(2):
        net(torch.randn(8, 4))
        after.step()
    assert len(after.history) == 1
