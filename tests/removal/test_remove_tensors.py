from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.model.removal import Removal, find_removal, remove
from tests.removal.remove_net import GOOD, H, Net, Tied, W, make, plan


def slow(net: Net, x: Tensor, dead: set[int], dead_hidden: set[int]) -> np.ndarray:
    """The large network with some units silent, by loops in float64."""
    p = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
    out = np.zeros((len(x), 2))
    for n, image in enumerate(x.numpy()):
        features = []
        for c in range(len(p["conv.bias"])):
            for i in range(H - 2):
                for j in range(W - 2):
                    value = p["conv.bias"][c]
                    for d in range(2):
                        for a in range(3):
                            for b in range(3):
                                value += p["conv.weight"][c, d, a, b] * image[d, i + a, j + b]
                    value = (value - p["norm.running_mean"][c]) / (p["norm.running_var"][c] + 1e-5) ** 0.5
                    value = value * p["norm.weight"][c] + p["norm.bias"][c]
                    features.append(0.0 if c in dead else max(value, 0.0))
        for o in range(2):
            out[n, o] = p["fc2.bias"][o]
            for h in set(range(len(p["fc1.bias"]))) - dead_hidden:
                total = p["fc1.bias"][h] + sum(w * f for w, f in zip(p["fc1.weight"][h], features, strict=True))
                out[n, o] += p["fc2.weight"][o, h] * max(total, 0.0)
    return out


@given(
    st.lists(st.integers(0, 3), min_size=1, unique=True),
    st.lists(st.integers(0, 2), min_size=1, unique=True),
    st.integers(0, 99),
)
def test_the_small_network_computes_what_the_large_one_computes_without_the_units(
    channels: list[int], hidden: list[int], seed: int
) -> None:
    net = make(seed)
    x = torch.randn(1, 2, H, W, dtype=torch.float64)
    expected = slow(net, x, set(range(4)) - set(channels), set(range(3)) - set(hidden))
    remove(net, plan(tuple(channels), tuple(hidden)))
    assert np.abs(net(x).detach().numpy() - expected).max() < 1e-12
    assert repr(net) == repr(Net(len(channels), len(hidden)))
    net.train()(x.repeat(2, 1, 1, 1)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())


def test_objects_flags_hooks_and_gradients_live_on() -> None:
    net = make()
    net.fc1.weight.requires_grad_(False)
    net.conv.train()
    seen: list[tuple[int, ...]] = []
    net.conv.weight.register_hook(lambda grad: seen.append(tuple(grad.shape)))
    net.conv.bias.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.grad.shape)))
    net.conv.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[1:2])))
    x = torch.randn(2, 2, H, W, dtype=torch.float64)
    alive = net(x)  # keeps the accumulators of the old shapes alive
    alive.sum().backward(retain_graph=True)
    objects = [id(tensor) for tensor in net.state_dict(keep_vars=True).values()]
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    buffers = set(net.norm._buffers)
    remove(net, plan((3, 1), (0, 2)))
    assert [id(tensor) for tensor in net.state_dict(keep_vars=True).values()] == objects
    assert set(net.norm._buffers) == buffers
    assert torch.equal(net.conv.weight.grad, grads["conv.weight"][[3, 1]])
    assert torch.equal(net.fc2.weight.grad, grads["fc2.weight"][:, [0, 2]])
    assert torch.equal(net.fc2.bias.grad, grads["fc2.bias"])
    assert net.fc1.weight.grad is None
    assert not net.fc1.weight.requires_grad
    assert (net.conv.training, net.norm.training, net.training) == (True, False, False)
    seen.clear()
    net.zero_grad()
    net(x).sum().backward()
    assert sorted(seen) == sorted([(2,), (2, 2, 3, 3), (2,)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.uint16])
def test_dtypes_and_the_order_of_axes_in_memory_stay(dtype: torch.dtype) -> None:
    net = nn.Conv2d(4, 6, 3).requires_grad_(False)
    net.weight.data = torch.arange(216).view(6, 4, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    net.bias.data = torch.arange(6).to(dtype)
    raw = net.weight.clone()
    remove(net, Removal({"weight": {0: (5, 0), 1: (3, 1, 2)}, "bias": {0: (5, 0)}}))
    assert net.weight.dtype is dtype
    assert net.weight.is_contiguous(memory_format=torch.channels_last)
    assert net.weight.tolist() == [[raw[o, i].tolist() for i in (3, 1, 2)] for o in (5, 0)]
    volume = nn.Conv3d(2, 4, 2).to(memory_format=torch.channels_last_3d)
    remove(volume, Removal({"weight": {0: (1, 2, 3)}, "bias": {0: (1, 2, 3)}}))
    assert volume.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_old_memory_is_let_go() -> None:
    net = nn.Linear(100, 100)
    remove(net, Removal({"weight": {0: (1, 2)}, "bias": {0: (1, 2)}}))
    assert net.weight.untyped_storage().nbytes() == 2 * 100 * 4


def test_ties_stay_and_all_owners_learn_the_size() -> None:
    net = Tied()
    kept = {0: (5, 0, 3), 1: (1, 2)}
    with pytest.raises(ValueError, match=r"'embed\.weight' and 'view' are the same memory"):
        remove(net, Removal({"embed.weight": kept}))
    remove(net, Removal({"embed.weight": kept, "view": kept}))
    assert net.head.weight is net.embed.weight
    assert net.view.data_ptr() == net.embed.weight.data_ptr()
    assert "view" in net._non_persistent_buffers_set
    assert (net.head.in_features, net.head.out_features) == (2, 3)
    assert (net.embed.num_embeddings, net.embed.embedding_dim) == (3, 2)
    net(torch.tensor([0, 2])).sum().backward()


def test_a_scale_is_multiplied_in_and_the_gradient_follows_the_chain_rule() -> None:
    net = nn.RMSNorm(4, eps=1e-3)
    nn.init.normal_(net.weight)
    old = net.weight.detach().clone()
    x = torch.randn(3, 4)
    x[:, 1] = 0
    net(x)[:, [0, 2, 3]].square().sum().backward()
    grad = net.weight.grad.clone()
    remove(net, Removal({"weight": {0: (0, 2, 3)}}, {"": {"eps": 1e-3 * 4 / 3}}, {"weight": (4 / 3) ** 0.5}))
    keep = [0, 2, 3]
    assert torch.allclose(net.weight, old[keep] * (4 / 3) ** 0.5)
    assert net.normalized_shape == (3,)
    assert torch.allclose(net.weight.grad, grad[keep] / (4 / 3) ** 0.5)
    before = net.weight.grad.clone()
    net.zero_grad()
    net(x[:, keep]).square().sum().backward()
    assert torch.allclose(net.weight.grad, before, rtol=1e-4)


def test_wrappers_are_looked_through() -> None:
    net = make()
    small = copy.deepcopy(net)
    remove(small, GOOD)
    compiled = torch.compile(net)
    remove(nn.DataParallel(compiled), GOOD)
    assert repr(net) == repr(small)
    inner = nn.Sequential(torch.compile(nn.Linear(3, 3)))
    remove(inner, Removal({"0.weight": {0: (1,)}, "0.bias": {0: (1,)}}, {"0": {"in_features": 3}}))
    assert inner[0]._orig_mod.out_features == 1


def test_what_was_removed_is_remembered_beside_the_model() -> None:
    net = make(channels=6)
    first, second = plan((0, 2, 4, 5), (1, 2)), plan((3, 1), (0,))
    remove(net, first)
    assert find_removal(nn.DataParallel(net)) == first
    remove(net, second)
    assert find_removal(net) == first.then(second)
    assert find_removal(copy.deepcopy(net)) is None
    net.fc2 = nn.Linear(1, 7)  # a new head: unit 1 of the old one is nothing that can be said of it
    net.fc1 = nn.Linear(18, 5)
    removal = find_removal(net)
    assert removal is not None
    assert sorted(removal.kept) == sorted(name for name in first.kept if name not in ("fc1.weight", "fc1.bias"))
