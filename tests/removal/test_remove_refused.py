"""A plan that does not fit changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from secateur.model.removal import Removal, find_removal, remove
from tests.removal.remove_net import GOOD, H, Tied, W, make


def snapshot(net: nn.Module) -> dict[str, Any]:
    tensors = {name: (id(t), t.data_ptr(), t.clone()) for name, t in net.state_dict(keep_vars=True).items()}
    grads = {name: p.grad for name, p in net.named_parameters()}
    return {"tensors": tensors, "grads": grads, "repr": repr(net), "dicts": [dict(vars(m)) for m in net.modules()]}


def assert_same(now: dict[str, Any], before: dict[str, Any]) -> None:
    assert now["repr"] == before["repr"]
    for (name, old), new in zip(before["tensors"].items(), now["tensors"].values(), strict=True):
        assert old[:2] == new[:2], name
        assert torch.equal(old[2], new[2])
    assert all(now["grads"][name] is grad for name, grad in before["grads"].items())
    for new, old in zip(now["dicts"], before["dicts"], strict=True):
        assert {k: v for k, v in new.items() if k[0] != "_"} == {k: v for k, v in old.items() if k[0] != "_"}


def but(**changes: Any) -> Removal:
    """The good plan with some tensors sliced otherwise; None: not sliced."""
    kept = {**GOOD.kept, **{name.replace("__", "."): axes for name, axes in changes.items()}}
    return Removal({name: axes for name, axes in kept.items() if axes is not None})


@pytest.mark.parametrize(
    ("removal", "message"),
    [
        (but(conv__wieght={0: (0,)}), r"'conv\.wieght', which is no parameter or buffer"),
        (but(conv__weight={4: (0, 2)}), r"axis 4 of 'conv\.weight'"),
        (but(conv__weight={-1: (0, 2)}), r"axis -1 of 'conv\.weight'"),
        (but(conv__weight={0: ()}), "nothing would be left"),
        (but(conv__weight={0: (0, 4)}), "no position 4"),
        (but(conv__weight={0: (0, -1)}), "no position -1"),
        (but(conv__weight={0: (2, 2)}), "kept twice"),
        (but(conv__weight={0: (0, 2.0)}), "positions are integers"),
        (but(conv__bias=None), r"conv \(Conv2d\): bias would be \(4,\) beside tensors that ask for \(2,\)"),
        (but(norm__running_var=None), r"norm \(BatchNorm2d\): running_var would be \(4,\)"),
        (but(fc1__bias={0: (0, 1)}), r"fc1 \(Linear\): bias would be \(2,\)"),
        (Removal(GOOD.kept, {"conv": {"kernels": 3}}), "no attribute 'kernels'; attributes can be changed, not added"),
        (Removal(GOOD.kept, {"convolution": {"groups": 3}}), r"\['convolution'\], which are no modules"),
        (Removal(GOOD.kept, {"conv": {"out_channels": 3}}), "sets out_channels to 3, its tensors say 2; leave it out"),
        (Removal(GOOD.kept, {"norm": {"affine": 3}}), "affine is True and cannot be set to 3"),
        (Removal(GOOD.kept, {"norm": {"eps": (1, 2)}}), r"cannot be set to \(1, 2\)"),
        (Removal(GOOD.kept, {"fc1": {"weight": 3}}), "cannot be set to 3"),
        (Removal(GOOD.kept, scales={"conv.weight": 0.0}), "finite factor other than 0"),
        (Removal(GOOD.kept, scales={"conv.weight": float("inf")}), "finite factor other than 0"),
        (Removal(GOOD.kept, scales={"norm.num_batches_tracked": 2.0}), "of a float tensor"),
    ],
)
def test_a_wrong_plan_changes_nothing(removal: Removal, message: str) -> None:
    net = make()
    net(torch.randn(2, 2, H, W, dtype=torch.float64)).sum().backward()
    before = snapshot(net)
    with pytest.raises(ValueError, match=message):
        remove(net, removal)
    assert_same(snapshot(net), before)
    assert find_removal(net) is None
    remove(net, GOOD)


def test_an_interrupt_in_the_middle_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make()
    net(torch.randn(2, 2, H, W, dtype=torch.float64)).sum().backward()
    before = snapshot(net)

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.model.removal.tensors.extend_mark", stop)
    with pytest.raises(KeyboardInterrupt):
        remove(net, GOOD)
    assert_same(snapshot(net), before)


def test_the_names_of_later_ties_are_refused_with_the_first_one() -> None:
    net = Tied()
    with pytest.raises(ValueError, match=r"'head\.weight', which is tied to 'embed\.weight'; use that name"):
        remove(net, Removal({"head.weight": {0: (0,)}}))


def distributed(net: nn.Module) -> nn.Module:
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = net
    return wrapped


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: distributed(nn.Linear(3, 3)), "remove from model.module"),
        (lambda: nn.Sequential(distributed(nn.Linear(3, 3))), "remove from model.module"),
        (lambda: nn.LazyLinear(3), "run the model once"),
    ],
)
def test_models_that_cannot_be_sliced_say_so(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        remove(build(), Removal({"weight": {0: (0,)}}))


def test_nothing_to_do_does_nothing() -> None:
    net = make()
    before = snapshot(net)
    remove(net, Removal())
    assert_same(snapshot(net), before)
    assert find_removal(net) is None
