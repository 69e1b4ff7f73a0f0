"""Smaller images for the trace: what is accepted, what is refused, and what is remembered of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.model.graph import groups as groups_module
from secateur.model.graph import learned as learned_module
from secateur.model.graph.examples import Example
from secateur.model.graph.group import Groups
from secateur.model.graph.learned import learn
from secateur.model.graph.relations import Relations
from secateur.model.graph.smaller import cut_down, smaller_size
from secateur.model.graph.sorting import group_up
from secateur.model.graph.trace import trace
from secateur.model.graph.twins import copied, own_memory, twin
from tests.oracles.removal import run
from tests.removal.traced_nets import Made, distance

X = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def net(forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> Made:
    torch.manual_seed(0)
    shared: dict[str, Any] = {"a": nn.Conv2d(3, 8, 3, 2, 1), "b": nn.Conv2d(8, 12, 3, 2, 1), "c": nn.Linear(12, 4)}
    return Made(forward, **{**shared, **layers}).eval()


def plain(m: Any, x: Tensor) -> Tensor:
    return m.c(F.adaptive_avg_pool2d(m.b(m.a(x).relu()).relu(), 1).flatten(1))


def traced_whole(model: nn.Module, x: Tensor) -> Groups:
    """The same without any smaller image: an oracle that knows nothing of them."""
    relations = Relations()
    trace(model, Example((torch.cat([x, x]),)), relations)
    return group_up(model, relations)


def size_of(model: nn.Module, x: Tensor) -> int | None:
    return smaller_size(model, [Example((x,))])[0]


@pytest.mark.parametrize(
    ("shape", "small"),
    [
        ((2, 3, 224, 224), (2, 3, 64, 64)),
        ((1, 3, 512, 1024), (1, 3, 32, 64)),
        ((1, 3, 300, 200), (1, 3, 64, 40)),
        ((1, 2, 16000), (1, 2, 512)),
        ((1, 3, 64, 128, 128), (1, 3, 32, 32, 32)),
        ((1, 3, 20, 20), (1, 3, 20, 20)),
        ((4, 500), (4, 500)),
    ],
)
def test_images_are_cut_to_the_same_aspect_and_other_tensors_are_not(
    shape: tuple[int, ...], small: tuple[int, ...]
) -> None:
    x = image(*shape)
    cut = cut_down(Example((x,), {"ids": torch.ones(1, 9, 224, 224, dtype=torch.int64)}), 0)
    assert cut.args[0].shape == small
    assert cut.kwargs["ids"].shape == (1, 9, 224, 224)
    assert torch.equal(cut.args[0], x[tuple(slice(length) for length in small)])
    assert small == shape or cut.args[0].data_ptr() != x.data_ptr()


@pytest.mark.parametrize(
    "forward",
    [
        plain,
        lambda m, x: m.c(m.b(F.max_pool2d(m.a(x).relu(), 2)).mean((2, 3))),
        lambda m, x: m.c(m.b(m.a(F.pad(x, (1, 1, 1, 1)))).flatten(2).amax(2)),
        lambda m, x: m.c(m.b(F.interpolate(m.a(x), scale_factor=2.0)).mean((2, 3))),
    ],
)
def test_where_the_size_does_not_matter_the_groups_are_those_of_the_whole_image(
    forward: Callable[[Any, Tensor], Tensor],
) -> None:
    model = net(forward)
    assert size_of(model, X) == 0
    found, whole = sc.groups(model, X, verify=False), traced_whole(model, X)
    assert (found.found, found.frozen) == (whole.found, whole.frozen)
    assert len(found) == 2


REFUSED = {
    "a linear layer over all pixels": net(
        lambda m, x: m.c(m.b(m.a(x)).mean((2, 3))) + m.d(x.flatten(1)), d=nn.Linear(3 * 160 * 160, 4)
    ),
    "a position for each pixel": net(
        lambda m, x: m.c((m.b(m.a(x)) + m.p.weight).mean((2, 3))), p=nn.Conv2d(1, 1, 40, bias=False)
    ),
    "another branch for small images": net(
        lambda m, x: plain(m, x) if x.shape[-1] > 150 else m.c(m.b(m.a(x)).mean((2, 3)))
    ),
    "another layer for small images": net(
        lambda m, x: m.c((m.b if x.shape[-1] > 150 else m.e)(m.a(x)).mean((2, 3))), e=nn.Conv2d(8, 12, 3, 2, 1)
    ),
    "nothing left to broadcast": net(lambda m, x: m.c(F.avg_pool2d(m.b(m.a(x)), 16).mean((2, 3)))),
    "a loop over places": net(
        lambda m, x: m.c(sum(m.b(m.a(x[:, :, i : i + 40])).mean((2, 3)) for i in range(0, x.shape[2], 40)))
    ),
    "channels cut into as many parts as there are rows": net(
        lambda m, x: m.c(
            m.b(m.a(x))
            .unflatten(1, (-1, 12 if x.shape[-1] > 150 else 2))
            .sum(2)
            .flatten(2)
            .mean(2)
            .repeat(1, 12 if x.shape[-1] > 150 else 2)
        )
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_runs_another_way_on_small_images_is_traced_as_it_is(name: str) -> None:
    model = REFUSED[name]
    run(model, X)
    assert size_of(model, X) is None
    found, whole = sc.groups(model, X, verify=False), traced_whole(model, X)
    assert (found.found, found.frozen) == (whole.found, whole.frozen)


def test_the_last_probe_runs_at_the_users_size() -> None:
    """An attribute that only matters at the user's size: what works for small images alone is refused."""

    def forward(m: Any, x: Tensor) -> Tensor:
        assert x.shape[-1] < 100 or m.a.weight.shape[0] == 8, "made for eight channels"
        return plain(m, x)

    model = net(forward)
    before = copy.deepcopy(model.state_dict())
    groups = sc.groups(model, X)
    assert "a.weight" in groups  # seen to work, on small images
    with pytest.raises(ValueError, match=r"nothing was changed.*made for eight channels"):
        sc.shrink(model, units={"a.weight": [0, 1]}, example_inputs=X, inplace=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_a_forward_keeps_of_an_image_is_never_that_of_a_small_one() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        if not hasattr(m, "seen"):
            m.seen = x.shape[-1]
        return plain(m, x)

    model = net(forward)
    assert size_of(model, X) == 0
    sc.shrink(model, units={"a.weight": [0]}, example_inputs=X)
    assert getattr(model, "seen", 160) == 160


def test_prune_and_shrink_trace_once_and_again_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[nn.Module] = []
    real = learned_module.trace
    monkeypatch.setattr(learned_module, "trace", lambda root, *rest: traces.append(root) or real(root, *rest))
    model = net(plain)
    sc.prune(model, 0.5, unit="channel", example_inputs=X)
    with torch.no_grad():
        model.c.bias.add_(1)  # training changes weights
    small = sc.shrink(model, example_inputs=image(4, 3, 160, 160)[:1])
    assert len(traces) == 1
    assert distance(run(model, X), run(small, X)) < 1e-5
    sc.groups(model, image(1, 3, 192, 192))
    assert len(traces) == 2
    model.b = nn.Conv2d(8, 12, 3, 2, 1)  # an equal layer in its place is no change
    sc.groups(model, image(1, 3, 192, 192))
    assert len(traces) == 2


def widen(model: Made) -> None:
    model.b, model.e = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
    model.c = nn.Linear(16, 4)


def tie(model: Made) -> None:
    model.b.weight = model.e.weight


CHANGES: dict[str, Callable[[Any], Any]] = {
    "wider": widen,
    "another class": lambda m: setattr(m, "b", nn.ConvTranspose2d(8, 12, 3, 2, 1)),
    "a number of a module": lambda m: setattr(m.b, "stride", (1, 1)),
    "a number in a config": lambda m: setattr(m.config, "parts", 4),
    "a number in a list": lambda m: m.sizes.append(3),
    "a hook": lambda m: m.b.register_forward_hook(lambda *_: None),
    "an index": lambda m: m.places.copy_(torch.arange(12).flip(0)),
    "a tie": tie,
    "a function": lambda m: setattr(m, "act", F.gelu),
}


class Config:
    def __init__(self) -> None:
        self.parts = 2


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_asked_again(name: str) -> None:
    model = net(lambda m, x: plain(m, x) + m.c(m.e(m.a(x)).mean((2, 3))), e=nn.Conv2d(8, 12, 3, 2, 1))
    model.config, model.sizes, model.act = Config(), [1, 2], F.relu
    model.register_buffer("places", torch.arange(12))
    known = learn(model, [Example((X,))])
    assert learn(model, [Example((X,))]) is known
    CHANGES[name](model)
    assert learn(model, [Example((X,))]) is not known


def test_a_model_that_decides_by_its_data_is_traced_every_time() -> None:
    model = net(lambda m, x: plain(m, x if x.mean() > 0 else -x))
    examples = [Example((X.abs(),)), Example((-X.abs(),))]
    assert learn(model, examples) is not learn(model, examples)


def test_a_twin_is_a_deep_copy_over_the_same_memory() -> None:
    model = net(plain, n=nn.BatchNorm2d(8), r=nn.LSTM(3, 2))
    model.e = nn.Linear(12, 4)
    model.e.weight = model.c.weight
    model.again, model.table = [model.a], {"b": model.b, "x": torch.ones(2)}
    for made, shared in ((twin(model), True), (copied(model), False)):
        assert {n: t.shape for n, t in made.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
        assert distance(run(made, X), run(model, X)) == 0
        assert made.a is not model.a
        assert made.again[0] is made.a
        assert made.table["b"] is made.b
        assert made.e.weight is made.c.weight
        assert made.r._flat_weights[0] is made.r.weight_ih_l0
        assert made.a._forward_hooks is not model.a._forward_hooks
        assert (made.a.weight.data_ptr() == model.a.weight.data_ptr()) == shared
        assert made.n.running_mean.data_ptr() != model.n.running_mean.data_ptr()
        assert made.table["x"].data_ptr() != model.table["x"].data_ptr()
    other = twin(model)
    own_memory(other, model)
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(other.parameters(), model.parameters(), strict=True))
    assert other.e.weight is other.c.weight


def test_the_smaller_model_shares_nothing_with_the_users() -> None:
    model = net(plain)
    small = sc.shrink(model, units={"a.weight": [0]}, example_inputs=X)
    theirs = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert not any(tensor.untyped_storage().data_ptr() in theirs for tensor in small.state_dict().values())


def test_a_forward_that_writes_into_its_weights_gets_copies_of_its_own() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.b.weight.data.mul_(m.keep)
        return plain(m, x)

    model = net(forward)
    model.register_buffer("keep", torch.ones(1))
    assert not learn(model, [Example((X,))]).shares
    assert learn(net(plain), [Example((X,))]).shares
    before = copy.deepcopy(model.state_dict())
    small = sc.shrink(model, units={"a.weight": [0]}, example_inputs=X)
    assert small.a.out_channels == 7
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_groups_are_still_tried_before_they_are_shown() -> None:
    """Nothing in the trace says that seven channels do not work; a copy with seven does."""

    def forward(m: Any, x: Tensor) -> Tensor:
        assert m.a.weight.shape[0] == 8, "made for eight channels"
        return plain(m, x)

    model = net(forward)
    assert "a.weight" in sc.groups(model, X, verify=False)
    found = sc.groups(model, X)
    assert "a.weight" not in found
    assert "made for eight channels" in found.frozen["a.weight out"]
    assert groups_module.find_groups(model, X).found == found.found
