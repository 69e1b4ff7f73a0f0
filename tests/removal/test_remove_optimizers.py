from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.model.removal import Removal, remove, slice_optimizer, sliced_state, tensor_shapes
from tests.removal.remove_net import Net, make, plan

CHANNELS, HIDDEN = (3, 0), (2, 1)
PLAN = plan(CHANNELS, HIDDEN)


def loss_of(net: nn.Module, seed: int) -> Tensor:
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return net(x).square().sum()  # in eval mode: behind batch statistics a bias has a gradient of rounding errors


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for seed in steps:
        optimizer.zero_grad()
        loss_of(net, seed).backward()
        optimizer.step()


def silence(net: Net) -> None:
    """Zero the producers of the units that go: they, and their consumers' slices, then get no gradient."""
    with torch.no_grad():
        for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias"):
            net.get_parameter(name)[[1, 2]] = 0
        net.fc1.weight[[0]] = 0
        net.fc1.bias[[0]] = 0


def kept(name: str, tensor: Tensor) -> Tensor:
    for dim, positions in PLAN.kept.get(name, {}).items():
        tensor = tensor.index_select(dim, torch.tensor(positions))
    return tensor


OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
    lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
    lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    lambda p: torch.optim.SGD(p, lr=0.01),
    lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    lambda p: torch.optim.Adagrad(p, lr=0.01),
    torch.optim.Adadelta,
    torch.optim.NAdam,
    torch.optim.Rprop,
]


@pytest.mark.parametrize("build", OPTIMIZERS)
def test_one_step_of_the_small_model_is_the_large_ones_on_what_is_kept(
    build: Callable[[Any], torch.optim.Optimizer],
) -> None:
    large = make()
    optimizer = build(large.parameters())
    train(large, optimizer, range(3))
    silence(large)
    small, sliced_optimizer = copy.deepcopy([large, optimizer])
    identity = id(sliced_optimizer), [id(p) for g in sliced_optimizer.param_groups for p in g["params"]]
    before = tensor_shapes(small)
    remove(small, PLAN)
    slice_optimizer(sliced_optimizer, small, PLAN, before)
    assert identity == (id(sliced_optimizer), [id(p) for g in sliced_optimizer.param_groups for p in g["params"]])
    train(large, optimizer, range(3, 4))
    train(small, sliced_optimizer, range(3, 4))
    for name, parameter in small.named_parameters():
        assert (parameter - kept(name, large.get_parameter(name))).abs().max() < 1e-9, name
        for key, value in sliced_optimizer.state[parameter].items():
            other = optimizer.state[large.get_parameter(name)][key]
            if isinstance(value, Tensor) and value.dim():
                assert torch.allclose(value, kept(name, other), atol=1e-9), key
            else:
                assert value == other, key


def test_a_copy_keeps_the_two_together() -> None:
    net = make()
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer, range(2))
    before = tensor_shapes(net)
    remove(net, PLAN)
    slice_optimizer(optimizer, net, PLAN, before)
    twin, twin_optimizer = copy.deepcopy([net, optimizer])
    train(twin, twin_optimizer, range(5, 7))
    train(net, optimizer, range(5, 7))
    for left, right in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(left, right)
    state = optimizer.state_dict()
    fresh = torch.optim.Adam(net.parameters())
    fresh.load_state_dict(state)
    train(net, fresh, range(8, 9))


def test_before_the_removal_it_works_as_well() -> None:
    net = make()
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer, range(1))
    full = {n: optimizer.state[p]["exp_avg"].clone() for n, p in net.named_parameters()}
    waiting = sliced_state(optimizer, net, PLAN, tensor_shapes(net))
    assert len(waiting) == 14  # exp_avg and exp_avg_sq of all but fc2.bias
    assert optimizer.state[net.conv.weight]["exp_avg"].shape == (4, 2, 3, 3)
    remove(net, PLAN)
    waiting.put()
    for name, parameter in net.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], kept(name, full[name]))
    train(net, optimizer, range(1))


def test_frozen_and_foreign_parameters_are_left_alone() -> None:
    net, other = make(), nn.Linear(2, 2).double()
    net.conv.requires_grad_(False)
    optimizer = torch.optim.Adam([*net.parameters(), *other.parameters()])
    other(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    train(net, optimizer, range(1))
    other.weight.grad = torch.ones_like(other.weight)
    optimizer.step()
    foreign = optimizer.state[other.weight]["exp_avg"]
    before = tensor_shapes(net)
    remove(net, PLAN)
    slice_optimizer(optimizer, net, PLAN, before)
    assert optimizer.state[other.weight]["exp_avg"] is foreign
    assert net.conv.weight not in optimizer.state


def test_memory_format_and_dtype_of_the_state_stay() -> None:
    net = nn.Conv2d(4, 4, 3).to(torch.bfloat16).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(1, 4, 4, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    removal = Removal({"weight": {0: (1, 2)}, "bias": {0: (1, 2)}})
    slice_optimizer(optimizer, net, removal, tensor_shapes(net))
    state = optimizer.state[net.weight]["exp_avg"]
    assert state.is_contiguous(memory_format=torch.channels_last)
    assert (state.dtype, state.shape) == (torch.bfloat16, (2, 4, 3, 3))


def with_state(net: nn.Linear, key: str, value: object) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.state[net.bias]["momentum_buffer"] = torch.arange(4.0)
    optimizer.state[net.weight][key] = value
    return optimizer


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("row_var", (4, 1), [[1], [3]]),
        ("col_var", (1, 3), [[0, 2]]),
        ("exp_avg_sq_row", (4,), [1, 3]),
        ("exp_avg_sq_col", (3,), [0, 2]),
        ("per_row", (4,), [1, 3]),
    ],
)
def test_means_over_one_axis_are_sliced_along_the_others(key: str, shape: tuple[int, ...], expected: list[Any]) -> None:
    net = nn.Linear(3, 4)
    optimizer = with_state(net, key, torch.arange(max(shape)).view(shape))
    removal = Removal({"weight": {0: (1, 3), 1: (0, 2)}, "bias": {0: (1, 3)}})
    slice_optimizer(optimizer, net, removal, tensor_shapes(net))
    assert optimizer.state[net.weight][key].tolist() == expected
    assert optimizer.state[net.bias]["momentum_buffer"].tolist() == [1, 3]


def test_adafactor_of_torch_trains_on() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2))
    optimizer = torch.optim.Adafactor(net.parameters())
    units = (0, 4, 2)
    removal = Removal({"0.weight": {0: units}, "0.bias": {0: units}, "1.weight": {1: units}})
    net(torch.randn(3, 6)).sum().backward()
    optimizer.step()
    columns = optimizer.state[net[1].weight]["col_var"].clone()
    slice_optimizer(optimizer, net, removal, tensor_shapes(net))
    remove(net, removal)
    assert torch.equal(optimizer.state[net[1].weight]["col_var"], columns[:, list(units)])
    optimizer.zero_grad()
    net(torch.randn(3, 6)).sum().backward()
    optimizer.step()


def test_a_square_matrix_does_not_mix_up_its_means() -> None:
    net = nn.Linear(4, 4)
    removal = Removal({"weight": {0: (1, 3), 1: (0, 2)}})
    for key, expected in (("exp_avg_sq_row", [1, 3]), ("exp_avg_sq_col", [0, 2])):
        optimizer = with_state(net, key, torch.arange(4))
        slice_optimizer(optimizer, net, removal, tensor_shapes(net))
        assert optimizer.state[net.weight][key].tolist() == expected
    with pytest.raises(ValueError, match=r"'mean' of 'weight' has shape \(4,\), which may be either mean of \(4, 4\)"):
        slice_optimizer(with_state(net, "mean", torch.arange(4)), net, removal, tensor_shapes(net))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(7), r"state 'odd' of 'weight' has shape \(7,\), which is no mean of \(4, 3\)"),
        ([torch.zeros(3)], "state 'odd' of 'weight' is a list of tensors"),
        ({"a": torch.zeros(3)}, "state 'odd' of 'weight' is a dict of tensors"),
    ],
)
def test_unknown_state_is_refused_before_any_change(value: object, message: str) -> None:
    net = nn.Linear(3, 4)
    optimizer = with_state(net, "odd", value)
    with pytest.raises(ValueError, match=message):
        slice_optimizer(optimizer, net, Removal({"weight": {0: (1,)}, "bias": {0: (1,)}}), tensor_shapes(net))
    assert optimizer.state[net.bias]["momentum_buffer"].tolist() == [0, 1, 2, 3]


def test_optimizers_that_cannot_be_sliced_say_so() -> None:
    net = nn.Linear(3, 4)
    removal = Removal({"weight": {0: (1,)}})
    with pytest.raises(ValueError, match="LBFGS keeps a history of the whole flat parameter vector"):
        slice_optimizer(torch.optim.LBFGS(net.parameters()), net, removal, tensor_shapes(net))
    with pytest.raises(ValueError, match="none of the optimizer's parameters belongs to this model"):
        slice_optimizer(torch.optim.SGD(nn.Linear(2, 2).parameters()), net, removal, tensor_shapes(net))
    with pytest.raises(ValueError, match="before_shapes does not say what shape 'weight' had"):
        slice_optimizer(with_state(net, "momentum_buffer", torch.zeros(4, 3)), net, removal, {})


def test_moments_follow_a_scale_as_gradients_do() -> None:
    """The small model's loss is the large one's with w = w' / s, so a fresh gradient comes out times 1 / s."""
    large, small = nn.RMSNorm(3), nn.RMSNorm(3)
    removal = Removal({"weight": {0: (0, 1, 2)}}, scales={"weight": 4.0})
    x = torch.randn(5, 3)
    one, other = torch.optim.Adam(large.parameters()), torch.optim.Adam(small.parameters())
    for net, optimizer, factor in ((large, one, 1.0), (small, other, 0.25)):
        (net(x) * factor).sum().backward()
        optimizer.step()
    slice_optimizer(one, large, removal, tensor_shapes(large))
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.allclose(one.state[large.weight][key], other.state[small.weight][key])


def test_hooks_of_the_optimizer_live_on() -> None:
    net, calls = make(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train(net, optimizer, range(1))
    slice_optimizer(optimizer, net, PLAN, tensor_shapes(net))
    remove(net, PLAN)
    train(net, optimizer, range(1))
    assert calls == [1, 1]
