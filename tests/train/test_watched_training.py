"""Criteria of activations and of inputs, scored by the forward passes of a training."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.train.loop.checkpoint import check_plain


def network(*, dropout: float = 0.0, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    second = nn.BatchNorm1d(10) if norm else nn.Identity()
    return nn.Sequential(
        nn.Linear(6, 10), second, nn.ReLU(), nn.Dropout(dropout), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def batch(step: int) -> Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(step)) * (1 + step)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        net(batch(step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def plan(criterion: str, at: int, unit: str = "filter", sparsity: float = 0.5) -> sc.Plan:
    return sc.Plan(
        sparsity, criterion=criterion, unit=unit, begin=at, end=at, schedule="one_shot", allocation="uniform"
    )


def lowest(scores: Tensor, count: int) -> set[int]:
    return set(scores.argsort(stable=True)[:count].tolist())


@pytest.mark.parametrize("watched", [1, 3])
def test_only_the_last_forward_passes_before_an_update_count(watched: int):
    """The oracle reads the activations of every step by hooks of its own, in float64."""
    net = network()
    seen: list[Tensor] = []
    net[5].register_forward_hook(lambda _m, _i, out: seen.append(out.detach().double().clone()))
    pruner = sc.Pruner(net, plan("mean_activation", 7), batches=watched)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    pruner.attach(optimizer)
    train(net, optimizer, 0, 7)
    # The run that finds the places happens inside the first watched pass, so hooks see it too, with two rows.
    steps = [out for out in seen if len(out) == 16]
    assert len(steps) == 7
    expected = torch.cat(steps[-watched:]).abs().mean(0)
    kept = pruner.masks.unit_masks["4.weight"].flatten()
    assert set((~kept).nonzero().flatten().tolist()) == lowest(expected, 4)
    others = torch.cat(steps[:-watched]).abs().mean(0)
    assert not torch.equal(expected, others)


def test_inputs_of_layers_are_those_of_the_training():
    net = network()
    twin = copy.deepcopy(net)
    pruner = sc.Pruner(net, plan("wanda", 4, "weight"), batches=2)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)  # nothing moves, so calibration on the same batches is the same
    pruner.attach(optimizer)
    train(net, optimizer, 0, 4)
    wanted = sc.prune(
        twin.train(), 0.5, criterion="wanda", allocation="uniform", data=[batch(2), batch(3)], batches=2, mode="train"
    )
    for name in wanted:
        assert torch.equal(pruner.masks.unit_masks[name], wanted.unit_masks[name]), name


def test_the_training_itself_is_the_same_bit_by_bit():
    """Dropout, batch-norm statistics and weights, until the first update."""

    def trained(criterion: str | None) -> tuple[nn.Module, Tensor]:
        net = network(dropout=0.4)
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        if criterion is not None:
            sc.Pruner(net, plan(criterion, 9), batches=6).attach(optimizer)
        torch.manual_seed(5)
        train(net, optimizer, 0, 8)
        return net, torch.rand(1)

    (plain, drawn), (watched, drawn_too) = trained(None), trained("apoz")
    assert torch.equal(drawn, drawn_too)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name


def test_evaluation_and_passes_that_raise_do_not_count():
    net = network()
    pruner = sc.Pruner(net, plan("mean_activation", 2), batches=2)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    pruner.attach(optimizer)
    expected: list[Tensor] = []
    for step in range(2):
        net.eval()(1000 * batch(step).roll(1, 1))
        net.train()
        with torch.no_grad():
            net(1000 * batch(step).roll(2, 1))
        with pytest.raises(RuntimeError):
            net(torch.ones(4, 5))
        train(net, optimizer, step, step + 1)
        hidden = copy.deepcopy(net).train()[:6]
        expected.append(hidden(batch(step)).detach().double())
    kept = pruner.masks.unit_masks["4.weight"].flatten()
    assert set((~kept).nonzero().flatten().tolist()) == lowest(torch.cat(expected).abs().mean(0), 4)


@pytest.mark.parametrize(
    ("criterion", "unit"),
    [
        ("mean_activation", "filter"),
        ("apoz", "filter"),
        ("activation_correlation", "filter"),
        ("hrank", "filter"),
        ("wanda", "weight"),
    ],
)
def test_a_checkpoint_between_two_watched_passes_goes_on_bit_by_bit(criterion: str, unit: str):
    def start() -> tuple[nn.Module, torch.optim.Optimizer, sc.Pruner]:
        net = network(norm=criterion != "hrank")
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        pruner = sc.Pruner(net, plan(criterion, 6, unit), batches=4)
        pruner.attach(optimizer)
        return net, optimizer, pruner

    whole, optimizer, pruner = start()
    train(whole, optimizer, 0, 6)
    cut, optimizer, before = start()
    train(cut, optimizer, 0, 4)
    check_plain(before.state_dict(), "state")
    file = io.BytesIO()
    torch.save({"pruner": before.state_dict(), "model": cut.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again, optimizer, after = start()
    again.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    after.load_state_dict(state["pruner"])
    train(again, optimizer, 4, 6)
    for name in pruner.masks:
        assert torch.equal(pruner.masks.unit_masks[name], after.masks.unit_masks[name]), name


def test_the_state_holds_the_passes_so_far():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    pruner = sc.Pruner(net, plan("mean_activation", 6), batches=4)
    pruner.attach(optimizer)
    train(net, optimizer, 0, 4)
    state = pruner.state_dict()["passes"]
    assert state["passes"] == 2
    assert float(state["observers"][0]["readers"][0]["_sums"]["4.weight"].abs().sum()) > 0


def test_without_a_forward_pass_there_is_advice():
    net = network()
    pruner = sc.Pruner(net, plan("mean_activation", 0))
    with pytest.raises(ValueError, match=r"no forward pass in train mode was seen yet.*data="):
        pruner.attach(torch.optim.SGD(net.parameters(), 0.1))


def test_examples_that_mix_in_training_are_refused_with_a_way_out():
    """Batch norm in train mode: which part of an activation is whose cannot be found by changing one example."""
    net = network()
    pruner = sc.Pruner(net, plan("hrank", 2))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    pruner.attach(optimizer)
    with pytest.raises(ValueError, match=r"cannot be told apart.*Or give the Pruner data="):
        train(net, optimizer, 0, 2)


def test_nothing_stays_in_the_model_outside_of_the_window():
    net = network()
    pruner = sc.Pruner(net, plan("mean_activation", 4), batches=2)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    pruner.attach(optimizer)
    there: list[bool] = []
    for step in range(6):
        there.append("forward" in vars(net))
        train(net, optimizer, step, step + 1)
    assert there == [False, False, True, True, False, False]
    assert pruner.masks.kept("4.weight") == 4 * 10


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: torch.load(_saved(net), weights_only=False)])
def test_copies_of_a_watched_model_are_models_of_their_own(copied: Callable[[nn.Module], nn.Module]):
    net = network(norm=False)
    pruner = sc.Pruner(net, plan("mean_activation", 2), batches=2)
    other = copied(net)
    assert "forward" in vars(net)
    other.train()(1000 * batch(0))
    assert torch.equal(other.eval()(batch(1)), net.eval()(batch(1)))
    with torch.no_grad():
        other[6].bias.add_(1.0)
    assert not torch.equal(other(batch(1)), net(batch(1)))
    with pytest.raises(ValueError, match="no forward pass"):
        pruner.step() or pruner.step()


def test_a_forward_that_somebody_put_in_front_stays_theirs():
    net = network()
    sc.Pruner(net, plan("mean_activation", 1)).attach(optimizer := torch.optim.SGD(net.parameters(), 0.0))
    watched, calls = net.forward, []

    def outer(x: Tensor) -> Tensor:
        calls.append(len(x))
        return watched(x)

    net.forward = outer
    train(net, optimizer, 0, 3)
    assert len(calls) >= 3
    assert net.forward is outer


def test_compiled_models_are_refused():
    net = network()
    net.compile()
    with pytest.raises(ValueError, match=r"the model is compiled.*data="):
        sc.Pruner(net, plan("mean_activation", 3))
    with pytest.raises(ValueError, match=r"1 is compiled.*data="):
        sc.Pruner(nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2))), plan("wanda", 3, "weight"))


def test_arguments_by_name_and_padding():
    """Tokens that the mask leaves out do not count."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, attention_mask: Tensor, **_: object) -> Tensor:
            return self.outer(torch.relu(self.inner(x))) * attention_mask[..., None]

    torch.manual_seed(1)
    net, x = Tokens(), torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    x[mask == 0] *= 100
    pruner = sc.Pruner(net, plan("mean_activation", 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    pruner.attach(optimizer)
    with torch.no_grad():
        expected = torch.relu(net.inner(x)).double()[mask == 1].mean(0)
    net(x, attention_mask=mask, more=True).sum().backward()
    optimizer.step()
    kept = pruner.masks.unit_masks["inner.weight"].flatten()
    assert set((~kept).nonzero().flatten().tolist()) == lowest(expected, 3)


def test_autocast_does_not_change_what_is_counted():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    pruner = sc.Pruner(net, plan("mean_activation", 2), batches=2)
    pruner.attach(optimizer)
    hidden: list[Tensor] = []
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(batch(step)).float().square().mean()
            hidden.append(copy.deepcopy(net).train()[:6](batch(step)).detach().double())
        loss.backward()
        optimizer.step()
    kept = pruner.masks.unit_masks["4.weight"].flatten()
    assert set((~kept).nonzero().flatten().tolist()) == lowest(torch.cat(hidden).abs().mean(0), 4)


def _saved(net: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return file
