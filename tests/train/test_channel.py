"""``unit="channel"`` from the model to masks: evidence per parameter, masks per group, nothing but units removed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from tests.oracles.channel_nets import (
    CHAIN,
    RESIDUAL,
    Chain,
    Residual,
    elements,
    parameters_of,
    pool_slowly,
    put_groups,
)

X = torch.zeros(2, 2, 3, 3)


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> Chain:
    put_groups(monkeypatch, CHAIN, {"fc2.weight out": "it makes the output"})
    return Chain()


def batch(size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 2, 3, 3, generator=generator), torch.randint(3, (size,), generator=generator)


def cut_by_hand(net: Chain, kept: dict[str, Tensor]) -> Chain:
    """The smaller network, sliced as the network's author would."""
    small = copy.deepcopy(net)
    a, b, c = (kept[name].nonzero().flatten() for name in ("conv1.weight", "conv2.weight", "fc1.weight"))
    columns = torch.cat([torch.arange(9 * int(i), 9 * int(i) + 9) for i in b])
    small.conv1.weight.data, small.conv1.bias.data = net.conv1.weight[a], net.conv1.bias[a]
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(small.bn, name).data = getattr(net.bn, name)[a]
    small.conv2.weight.data = net.conv2.weight[b][:, a]
    small.fc1.weight.data, small.fc1.bias.data = net.fc1.weight[c][:, columns], net.fc1.bias[c]
    small.fc2.weight.data = net.fc2.weight[:, c]
    return small


def removed_units_are_zero(net: nn.Module, masks: sc.Masks) -> bool:
    parameters = dict(net.named_parameters())
    return all(
        float(parameters[name][index].detach()) == 0.0
        for group, kept in masks.unit_masks.items()
        for unit in (~kept).nonzero().flatten().tolist()
        for name, index in elements(CHAIN[group], unit)
        if name in parameters
    )


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_the_masked_model_is_the_one_with_the_channels_cut_out(chain: Chain, sparsity: float):
    dense = copy.deepcopy(chain)
    masks = sc.prune(chain, sparsity, unit="channel", example_inputs=X)
    assert sum(int((~kept).sum()) for kept in masks.unit_masks.values()) == int(sparsity * 18 + 0.5)
    assert {name: tuple(kept.shape) for name, kept in masks.unit_masks.items()} == {
        "conv1.weight": (6,),
        "conv2.weight": (4,),
        "fc1.weight": (8,),
    }
    assert removed_units_are_zero(chain, masks)
    x, _ = batch()
    small = cut_by_hand(dense, masks.unit_masks).eval()
    torch.testing.assert_close(chain.eval()(x), small(x), rtol=0, atol=1e-6)
    assert not torch.allclose(chain(x), dense.eval()(x), atol=1e-3)


def test_masks_map_every_parameter_of_the_groups_and_no_buffer(chain: Chain):
    masks = sc.prune(chain, 0.5, unit="channel", example_inputs=X)
    assert set(masks) == {
        *("conv1.weight", "conv1.bias", "bn.weight", "bn.bias", "conv2.weight"),
        *("fc1.weight", "fc1.bias", "fc2.weight"),
    }
    assert all(masks[name].shape == parameter.shape for name, parameter in chain.named_parameters() if name in masks)
    assert torch.equal(masks["bn.bias"], masks.unit_masks["conv1.weight"])
    expected = masks.unit_masks["fc1.weight"][:, None] & masks.unit_masks["conv2.weight"].repeat_interleave(9)
    assert torch.equal(masks["fc1.weight"], expected)


def test_undo_restores_every_member_bit_for_bit(chain: Chain):
    before = {name: tensor.clone() for name, tensor in chain.state_dict().items()}
    sc.prune(chain, 0.3, unit="channel", example_inputs=X)
    masks = sc.prune(chain, 0.6, unit="channel", example_inputs=X, criterion="random", seed=5)
    assert not torch.equal(chain.bn.bias, before["bn.bias"])
    assert torch.equal(chain.bn.running_mean, before["bn.running_mean"])
    masks.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in chain.state_dict().items())


def test_scores_are_pooled_over_producers_or_over_all(chain: Chain):
    x, y = batch()
    found = sc.score(chain, "taylor", unit="channel", example_inputs=X, data=(x, y), loss=F.cross_entropy)
    everything = sc.score(chain, "taylor", unit="channel(all)", example_inputs=X, data=(x, y), loss=F.cross_entropy)
    chain.eval()
    F.cross_entropy(chain(x), y).backward()
    weights = {n: (p.detach().double() * p.grad.double()) ** 2 for n, p in chain.named_parameters()}
    for group, key in CHAIN.items():
        assert found[group].tolist() == pytest.approx(pool_slowly(weights, key, "sum"), rel=1e-4)
        whole = {name: weights.get(name, torch.zeros(1)) for name in [*weights, *(m.name for m in key.members)]}
        assert everything[group].tolist() == pytest.approx(pool_slowly(whole, key, "sum", everything=True), rel=1e-4)


def test_gates_of_a_channel_are_averaged_over_its_producers(monkeypatch: pytest.MonkeyPatch):
    put_groups(monkeypatch, RESIDUAL)
    net = Residual().double()
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.randint(3, (7,))
    data = [(x[:4], y[:4]), (x[4:], y[4:])]
    found = sc.score(net, "gate_taylor", unit="channel", example_inputs=x, data=data, loss=F.cross_entropy)
    slow = torch.zeros(4, dtype=torch.float64)
    for part, labels in data:
        za, zb = torch.ones(4).double().requires_grad_(), torch.ones(8).double().requires_grad_()
        hidden = torch.tanh(net.a(part) * za + (net.b(part) * zb).view(-1, 4, 2).sum(2))
        ga, gb = torch.autograd.grad(F.cross_entropy(net.head(hidden), labels), (za, zb))
        slow += (ga**2 + (gb**2).view(4, 2).sum(1)) / 2 / len(data)
    torch.testing.assert_close(found["a.weight"], slow)


def test_a_gate_stands_behind_the_batch_norm_of_a_group(chain: Chain):
    x, y = batch()
    found = sc.score(chain, "gate_taylor", unit="channel", example_inputs=X, data=(x, y), loss=F.cross_entropy)
    chain.eval()
    gate = torch.ones(6, requires_grad=True)
    h = torch.relu(chain.conv2(torch.relu(chain.bn(chain.conv1(x)) * gate[:, None, None]))).flatten(1)
    (slow,) = torch.autograd.grad(F.cross_entropy(chain.fc2(torch.relu(chain.fc1(h))), y), gate)
    torch.testing.assert_close(found["conv1.weight"], slow.double() ** 2, rtol=1e-4, atol=1e-8)


def test_targets_name_producers_and_excluded_parameters_drop_their_groups(chain: Chain):
    def groups(**options: object) -> set[str]:
        return set(sc.score(chain, "l1", unit="channel", example_inputs=X, **options))

    assert groups(targets="conv1") == {"conv1.weight"}
    assert groups(targets=["fc1.weight", "conv*"]) == set(CHAIN)
    assert groups(targets=nn.Conv2d) == {"conv1.weight", "conv2.weight"}
    assert groups(exclude="conv1") == {"conv2.weight", "fc1.weight"}
    assert groups(exclude=chain.bn) == {"conv2.weight", "fc1.weight"}
    assert groups(exclude="fc2.weight") == {"conv1.weight", "conv2.weight"}  # it reads what fc1 makes
    assert groups(exclude="fc2.bias") == set(CHAIN)  # it is in no group
    with pytest.raises(ValueError, match=r"targets='conv3' matches nothing in Chain\. Did you mean 'conv"):
        groups(targets="conv3")
    with pytest.raises(ValueError, match="exclude='nothing' matches nothing"):
        groups(exclude="nothing")
    with pytest.raises(ValueError, match=r"no removable group: fc2\.weight out \(it makes the output\)"):
        groups(targets=["conv1", "fc2"])
    with pytest.raises(ValueError, match=r"no group of channels to prune in Chain: it has 3 .*it makes the output"):
        groups(exclude=["conv*", "fc*"])


def test_example_inputs_belong_to_channels_alone(monkeypatch: pytest.MonkeyPatch):
    calls = put_groups(monkeypatch, CHAIN)
    net = Chain()
    plan = sc.Plan(0.5, unit="channel")
    for call in (
        lambda: sc.prune(net, 0.5, unit="channel"),
        lambda: sc.score(net, unit="channel(all)"),
        lambda: sc.Pruner(net, plan),
    ):
        with pytest.raises(ValueError, match="give example_inputs="):
            call()
    for call in (
        lambda: sc.prune(net, 0.5, example_inputs=X),
        lambda: sc.score(net, unit="filter", exact=False),
        lambda: sc.Pruner(net, sc.Plan(0.5), example_inputs=X),
    ):
        with pytest.raises(ValueError, match="needs no trace"):
            call()
    assert calls == []
    sc.score(nn.DataParallel(net), unit="channel", example_inputs=(X,), exact=False)
    assert calls == [{"model": net, "example_inputs": (X,), "unit": "channel", "exact": False}]


def test_patterns_of_single_weights_are_refused():
    for within in ("2 of 4", "row"):
        with pytest.raises(ValueError, match="unit='channel' has none"):
            sc.Plan(0.5, unit="channel", within=within)


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk", "lamp", "uniform_plus"])
def test_one_unit_of_each_group_stays(chain: Chain, allocation: str):
    sparsity = 0.4 if allocation == "uniform_plus" else 15 / 18
    masks = sc.prune(chain, sparsity, unit="channel", example_inputs=X, allocation=allocation)
    assert all(kept.any() for kept in masks.unit_masks.values())
    if allocation == "uniform_plus":  # the first convolution stays dense
        assert masks.unit_masks["conv1.weight"].all()


def test_a_second_call_removes_more_and_brings_in_more_groups(chain: Chain):
    before = {name: tensor.clone() for name, tensor in chain.state_dict().items()}
    masks = sc.prune(chain, 0.5, unit="channel", example_inputs=X, targets="conv2")
    first = masks.unit_masks["conv2.weight"].clone()
    assert masks.shares().units == 0.5
    again = sc.prune(chain, 0.5, unit="channel", example_inputs=X, targets="fc1")
    assert again is masks
    assert torch.equal(masks.unit_masks["conv2.weight"], first)
    assert int(masks.unit_masks["fc1.weight"].sum()) == 4
    sc.prune(chain, 0.75, unit="channel", example_inputs=X, targets="conv2")
    assert int((masks.unit_masks["conv2.weight"] & first).sum()) == 1
    assert removed_units_are_zero(chain, masks)
    with pytest.raises(ValueError, match="already has masks of unit 'channel'"):
        sc.prune(chain, 0.5)
    pruned, copied = sc.prune(chain, 0.6, unit="channel", example_inputs=X, inplace=False)
    assert copied.shares().units > masks.shares().units
    assert removed_units_are_zero(pruned, copied)
    masks.undo()
    copied.undo()
    for net in (chain, pruned):
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_the_summary_and_the_report_name_the_shares(chain: Chain):
    dense = copy.deepcopy(chain)
    masks = sc.prune(chain, 0.5, unit="channel", example_inputs=X)
    text = str(masks)
    total, zeros = sum(m.numel() for m in masks.values()), sum(int((~m).sum()) for m in masks.values())
    assert f"{100 * zeros / total:.1f} % zeros in 8 tensors of 3 coupled groups" in text
    assert "unit channel, 50.0 % removed" in text
    kept = int(masks.unit_masks["conv1.weight"].sum())
    assert f"{kept} of 6 channels kept, slices of 5 tensors" in text
    shares = masks.shares()
    everything = sum(parameter.numel() for parameter in chain.parameters())
    assert (shares.units, shares.target_weights) == (0.5, pytest.approx(zeros / total))
    assert shares.all_parameters == pytest.approx(zeros / everything)
    record = sc.measure(dense=dense, sparse=chain, data=batch(), rounds=1, batches=(1,), budget_s=0.05)
    assert record.shares == shares
    assert (record.sparse.kept, record.sparse.effective_kept) == (everything - zeros, everything - zeros)
    assert record.sparse.macs_kept < record.dense.macs_kept


def test_the_tracer_finds_what_is_written_down_by_hand():
    model = Chain()
    masks = sc.prune(model, 0.5, unit="channel", example_inputs=X)
    own = parameters_of(CHAIN, model)
    assert {frozenset(key.members) for key in masks.layout.values()} == {frozenset(k.members) for k in own.values()}
    assert {name: key.role for name, key in masks.layout.items() if key.role == "first"} == {"conv1.weight": "first"}
    assert masks.shares().units == 0.5
