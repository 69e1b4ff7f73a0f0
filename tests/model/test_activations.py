"""Activation evidence against networks run by hand in float64, one channel at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.core.units import parse_unit
from secateur.model.evidence import Source, collect
from secateur.model.targets import find_targets
from tests.oracles.activations import activation_statistics, check_statistics, read_activations


def inplace(x: Tensor) -> Tensor:
    x.relu_()
    return x


class Net(nn.Module):
    """conv, batch norm, activation, pool, conv, activation, linear; float64."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(2, 5, 3, padding=1)
        self.bn = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 4, 3, padding=1)
        self.head = nn.Linear(16, 3)
        self.act = act
        with torch.no_grad():
            self.bn.running_mean = torch.tensor([-0.3, 0.2, 0.1, 0.3, -0.1])
            self.bn.weight.uniform_(0.5, 1.5)
            self.bn.bias.uniform_(-0.5, 0.5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(self.act(self.bn(self.conv1(x))), 2)
        return self.head(self.act(self.conv2(h)).flatten(1))


def images(*sizes: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(size, 2, 4, 4, generator=g, dtype=torch.float64) for size in sizes]


WAYS = {
    "functional": F.relu,
    "method": lambda x: x.relu(),
    "torch": torch.relu,
    "in place": inplace,
    "functional in place": lambda x: F.relu(x, inplace=True),
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "clamp": lambda x: x.clamp(min=0),
    "clamp in place": lambda x: x.clamp_min_(0.0),
    "maximum": lambda x: torch.maximum(x, torch.zeros((), dtype=x.dtype)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_relu_gives_the_same_evidence(way: str) -> None:
    net, data = Net(WAYS[way]), images(3, 4, 1, 7)
    found = read_activations(net, data)
    with torch.no_grad():
        first = [torch.where((z := net.bn(net.conv1(x))) > 0, z, 0.0) for x in data]
        second = [torch.where((z := net.conv2(F.max_pool2d(h, 2))) > 0, z, 0.0) for h in first]
        head = [net.head(h.flatten(1)) for h in second]
    check_statistics(found, "conv1.weight", activation_statistics(first))
    check_statistics(found, "conv2.weight", activation_statistics(second))
    check_statistics(found, "head.weight", activation_statistics(head, exact=False))
    assert 0.1 < found["activation_zeros"]["conv1.weight"].mean() < 0.9


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table = nn.Embedding(9, 4)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)
        self.double().eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.down(F.relu(self.up(self.table(input_ids))))


def test_weights_that_are_computed_and_cells_that_are_split() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    found = sc.score(net, "apoz", unit="channel", data=x, example_inputs=x)
    assert len(found) == 1
    with torch.no_grad():
        slow = (net[:2](x) > 0).double().mean(0)
    torch.testing.assert_close(next(iter(found.values())), slow)


def test_padding_is_left_out() -> None:
    net = Tokens()
    ids = torch.randint(0, 9, (3, 5))
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    found = read_activations(net, {"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        hidden = F.relu(net.up(net.table(ids)))
        kept = hidden[mask.bool()]
        out = net.down(hidden)[mask.bool()]
    check_statistics(found, "up.weight", activation_statistics([kept]))
    check_statistics(found, "down.weight", activation_statistics([out], exact=False))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 1, 5\)"):
        read_activations(net, {"input_ids": ids, "attention_mask": mask[:, None]})


class Branching(nn.Module):
    def __init__(self, draw: bool = False) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.draw = nn.Linear(3, 4), draw
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.first(x)
        if self.draw and self.calls % 2:
            h = torch.exp(h)
        return F.relu(h) if float(x.sum()) > 0 else torch.tanh(h)


def test_a_batch_that_takes_another_branch_is_looked_at_again() -> None:
    net = Branching().double()
    ones = torch.rand(4, 3, dtype=torch.float64)
    found = read_activations(net, [ones, -ones, ones])
    with torch.no_grad():
        parts = [F.relu(net.first(ones)), torch.tanh(net.first(-ones)), F.relu(net.first(ones))]
    for kind in ("activation_mean", "activation_signed"):
        torch.testing.assert_close(found[kind]["first.weight"], activation_statistics(parts)[kind])


def test_operators_that_change_from_run_to_run_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"two runs .* call different operators: aten.exp.default and then .*in `return F.relu"
    ):
        read_activations(Branching(draw=True).double(), torch.ones(2, 3, dtype=torch.float64))


def test_nothing_is_left_behind() -> None:
    net = Net(F.relu).train()
    net.conv2.eval()
    net.conv1.weight.grad = torch.ones_like(net.conv1.weight)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    hooks, rng = [], torch.get_rng_state()
    net.conv1.register_forward_hook(lambda *_: hooks.append(1))
    found = read_activations(net, images(3, 2))
    as_eval = read_activations(Net(F.relu), images(3, 2))
    assert torch.equal(found["activation_mean"]["conv1.weight"], as_eval["activation_mean"]["conv1.weight"])
    assert torch.equal(rng, torch.get_rng_state())
    assert net.training
    assert net.bn.training
    assert not net.conv2.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(net.conv1.weight.grad, torch.ones_like(net.conv1.weight))
    assert net.conv2.weight.grad is None
    assert len(net.conv1._forward_hooks) == 1
    assert not any(value.requires_grad for kind in found.values() for value in kind.values())
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ValueError, match="a batch is a str"):
        read_activations(net, ["text"])
    assert net.training


def test_what_a_user_gets_wrong_is_said() -> None:
    net = Net(F.relu)
    with pytest.raises(ValueError, match="give data="):
        read_activations(net, None)
    with pytest.raises(ValueError, match="unit filter or channel, not 'weight'"):
        sc.score(net, "apoz", data=images(2))
    with pytest.raises(ValueError, match="not 'weight'"):
        collect(net, ["activation_mean"], find_targets(net), parse_unit("weight")[0], Source(images(2)))
    net.spare = nn.Linear(2, 2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"no pass .*'spare\.weight'"):
        read_activations(net, images(2))
    with pytest.raises(ValueError, match="a batch is a tuple of 3"):
        read_activations(Net(F.relu), [(1, 2, 3)])
    x = images(3)[0]
    stepped = read_activations(Net(F.relu), [{"x": x, "n": 3}], step=lambda model, batch: model(batch["x"]))
    torch.testing.assert_close(
        stepped["activation_mean"]["conv1.weight"], read_activations(Net(F.relu), x)["activation_mean"]["conv1.weight"]
    )


def test_only_as_many_batches_as_asked_are_read_activations() -> None:
    data = images(3, 4, 5)
    found, slow = read_activations(Net(F.relu), data, batches=2), read_activations(Net(F.relu), torch.cat(data[:2]))
    for kind in ("activation_mean", "activation_signed"):
        torch.testing.assert_close(found[kind]["conv1.weight"], slow[kind]["conv1.weight"])
    torch.testing.assert_close(found["activation_zeros"]["conv2.weight"], slow["activation_zeros"]["conv2.weight"])


def test_apoz_prunes_what_never_fires() -> None:
    net = Net(F.relu)
    with torch.no_grad():
        net.bn.bias[torch.tensor([1, 3])] = -100.0
    x = images(6)[0]
    scores = sc.score(net, "apoz", unit="channel", data=x, example_inputs=x)["conv1.weight"]
    assert scores[[1, 3]].tolist() == [0.0, 0.0]
    assert (scores[[0, 2, 4]] > 0).all()
    with torch.no_grad():
        before = net(x)
    masks = sc.prune(net, 2 / 5, criterion="apoz", unit="channel", targets="conv1", data=[(x, None)], example_inputs=x)
    assert masks.unit_masks["conv1.weight"].tolist() == [True, False, True, False, True]
    with torch.no_grad():
        torch.testing.assert_close(net(x), before)


def test_mean_activation_of_filters_and_of_a_plan() -> None:
    net, x = Net(F.relu), images(6)[0]
    with torch.no_grad():
        slow = F.relu(net.bn(net.conv1(x))).mean((0, 2, 3))
    found = sc.score(net, "mean_activation", unit="filter", data=x)
    torch.testing.assert_close(found["conv1.weight"], slow)
    pruner = sc.Pruner(net, sc.Plan(0.4, criterion="mean_activation", unit="filter", targets="conv1"), data=x)
    pruner.step()
    kept = pruner.masks.unit_masks["conv1.weight"].flatten()
    assert kept.tolist() == (slow > slow.sort().values[1]).tolist()


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


class Experts(nn.Module):
    """Two experts by the sign of the first input; the third gets nothing."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.experts = nn.ModuleList(Expert() for _ in range(3))
        self.skip = skip
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h, out = self.first(x), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = torch.nonzero((x[:, 0] > 0).long() == number).flatten()
            if len(rows) or not self.skip:
                out = out.index_add(0, rows, expert(h[rows]))
        return self.head(out)


@pytest.mark.parametrize("skip", [True, False])
def test_an_expert_without_tokens_never_fires(skip: bool) -> None:
    net, x = Experts(skip), torch.randn(8, 4, dtype=torch.float64)
    data = [x.abs(), x]  # at first one expert alone
    with pytest.warns(UserWarning, match=r"no token reached 'experts\.2\.up\.weight', 'experts\.2\.down\.weight'"):
        found = read_activations(net, data)
    with torch.no_grad():
        own = [net.first(rows) for batch in data for rows in (batch[batch[:, 0] <= 0],)]
        fired = F.relu(net.experts[0].up(torch.cat(own)))
    check_statistics(found, "experts.0.up.weight", activation_statistics([fired]))
    assert found["activation_zeros"]["experts.2.up.weight"].tolist() == [1.0] * 6
    for criterion in ("apoz", "mean_activation", "activation_correlation"):
        with pytest.warns(UserWarning, match="no token reached"):
            scores = sc.score(net, criterion, unit="filter", data=data, batches=2)
        assert scores["experts.2.up.weight"].tolist() == [0.0] * 6
        assert float(scores["experts.0.up.weight"].max()) > 0


@pytest.mark.parametrize("function", [F.gelu, F.silu, F.relu])
def test_a_near_zero_rate_by_a_size_that_is_given(function: Any) -> None:
    """The share of ``|a| <= eps``, whatever the order of the batches."""
    net, data = Net(function), images(4, 3)
    data[1] *= 5.0
    call: dict[str, Any] = {"unit": "filter", "targets": "conv1", "batches": 2}
    found = [sc.score(net, "apoz(eps=0.2)", data=each, **call)["conv1.weight"] for each in (data, data[::-1])]
    slow = function(torch.cat([net.bn(net.conv1(x)) for x in data]).detach()).abs().le(0.2).double().mean((0, 2, 3))
    assert found[0].tolist() == found[1].tolist() == pytest.approx((1 - slow).tolist())
    assert 0.0 < float(slow.min()) < float(slow.max()) < 1.0
    for eps in ("-0.1", "'0.1'", "True"):
        with pytest.raises(ValueError, match="the largest size that counts as zero, 0 or more"):
            sc.score(net, f"apoz(eps={eps})", data=data, **call)
