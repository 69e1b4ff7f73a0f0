"""Watched trainings that freeze parts, wait with their backward pass, compute parts again, or go on elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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


class Again(nn.Module):
    """Attention whose activations are computed again in the backward pass."""

    def __init__(self, *, raises: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.raises = raises

    def inner(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).unflatten(2, (2, 4)).transpose(1, 2) for one in (self.q, self.k, self.v))
        return self.out(torch.relu(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.inner, x, use_reentrant=False)
        if self.raises:
            x.register_hook(_fail)
        return 2.0 * x


def _fail(_: Tensor) -> None:
    raise RuntimeError("in the backward pass")


@pytest.mark.parametrize(("kind", "unit"), [("input_norm", "weight"), ("activation_mean", "filter")])
def test_checkpointed_attention_runs_again_as_it_ran(kind: str, unit: str):
    torch.manual_seed(0)
    net, x = Again(), torch.randn(4, 5, 8)
    net(x).square().mean().backward()
    expected = net.q.weight.grad
    net.zero_grad()
    passes, backends = watching(net, kind, unit), _backends()
    for _ in range(2):
        net.zero_grad()
        net(x).square().mean().backward()
        assert _backends() == backends
        assert torch.allclose(net.q.weight.grad, expected, atol=1e-7)
    assert passes.passes == 2


def test_a_backward_pass_that_raises_leaves_plain_operators_no_longer_than_the_window():
    net, x, backends = Again(raises=True), torch.randn(4, 5, 8), _backends()
    passes = watching(net, "input_norm", "weight")
    with pytest.raises(RuntimeError, match="in the backward pass"):
        net(x).sum().backward()
    net.raises = False
    net(x).sum().backward()
    assert _backends() == backends
    net.raises = True
    with pytest.raises(RuntimeError, match="in the backward pass"):
        net(x).sum().backward()
    passes.watch(False)
    assert _backends() == backends


def _backends() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled(), cuda.flash_sdp_enabled()


def test_behind_the_window_nothing_counts_though_somebody_stands_in_front():
    net = nn.Sequential(nn.Linear(4, 2))
    passes, x = watching(net, "input_norm", "weight"), torch.randn(3, 4)
    watched = net.forward
    net.forward = lambda given: watched(given) + 0.0
    net(x)
    passes.watch(False)
    net(x)
    assert passes.passes == 1


def test_an_output_that_is_a_parameter_gets_no_hook():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = nn.Linear(4, 2), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x), self.scale

    net = Scaled()
    watching(net, "input_norm", "weight")
    out, scale = net(torch.randn(3, 4))
    (out.sum() * scale).backward()
    assert not net.scale._backward_hooks


def test_a_pass_behind_others_of_one_autocast_is_not_looked_at_twice():
    """Casts of weights are kept from one run to the next, so it would call fewer operators than the first look."""
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    rows: list[int] = []
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(5, 4))
        passes = watching(net, "activation_mean")
        net[0].register_forward_hook(lambda _m, _i, out: rows.append(len(out)))
        for _ in range(3):
            net(torch.randn(5, 4))
    assert passes.passes == 3
    assert rows == [2, 5, 5, 5]
