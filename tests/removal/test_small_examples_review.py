"""What planning on copies, on smaller images and from memory must not do: change the user's model, or believe it."""

from __future__ import annotations

import copy
import gc
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.model.graph.examples import Example
from secateur.model.graph.learned import learn
from secateur.model.graph.smaller import smaller_size
from secateur.train.budget import OutOfReach
from tests.oracles.removal import run, zeroed
from tests.removal.traced_nets import Made, dead_slices, distance

X = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
V = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
GONE = {"a.weight": [0, 3]}


def net(forward: Callable[[Any, Tensor], Tensor], **layers: Any) -> Made:
    torch.manual_seed(0)
    shared: dict[str, Any] = {"a": nn.Conv2d(3, 8, 3, 2, 1), "b": nn.Conv2d(8, 12, 3, 2, 1), "c": nn.Linear(12, 4)}
    return Made(forward, **{**shared, **layers}).eval()


def plain(m: Any, x: Tensor) -> Tensor:
    return m.c(F.adaptive_avg_pool2d(m.b(m.a(x).relu()).relu(), 1).flatten(1))


def bits(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# A forward that keeps something of its runs.


def scales(m: Any, x: Tensor) -> Tensor:
    m.b.weight.data.mul_(0.9)
    return plain(m, x)


def exchanges(m: Any, x: Tensor) -> Tensor:
    m.b.weight.data = m.b.weight.data * 0.9
    return plain(m, x)


def begins(m: Any, x: Tensor) -> Tensor:
    if not m.begun:
        m.s.data.copy_(x.std((0, 2, 3)))
        m.begun.fill_(True)
    return plain(m, x / m.s.view(1, 3, 1, 1))


def averages(m: Any, x: Tensor) -> Tensor:
    h = m.b(m.a(x).relu()).relu()
    m.mean.mul_(0.9).add_(0.1 * h.mean())
    return m.c((h / (1 + m.mean)).mean((2, 3)))


def counts(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    return plain(m, x) * m.calls


def decides_and_counts(m: Any, x: Tensor) -> Tensor:
    """Its size is written down, so that it is traced as it is."""
    m.calls += 1
    return plain(m, x) + m.d(x.flatten(1))


KEEPING: dict[str, Callable[[], Made]] = {
    "writes into a weight": lambda: net(scales),
    "gives a weight other data": lambda: net(exchanges),
    "begins with its first input": lambda: net(begins, s=nn.Parameter(torch.ones(3)), begun=torch.tensor(False)),
    "a running mean": lambda: net(averages, mean=torch.zeros(())),
    "a counter": lambda: net(counts, calls=torch.zeros(())),
    "a counter and a fixed size": lambda: net(decides_and_counts, calls=torch.zeros(()), d=nn.Linear(3 * 160 * 160, 4)),
}


@pytest.mark.parametrize("name", KEEPING)
def test_what_a_forward_keeps_is_neither_the_users_nor_the_smaller_models(name: str) -> None:
    model = KEEPING[name]()
    before = bits(model)
    groups = sc.groups(model, X)
    assert same(model, before)
    assert "a.weight" in groups
    small = sc.shrink(model, units=GONE, example_inputs=X)
    assert same(model, before)
    masked = zeroed(model, dead_slices(groups, GONE))
    assert distance(run(copy.deepcopy(masked), X), run(copy.deepcopy(small), X)) < 1e-5
    kept = {key: value for key, value in small.state_dict().items() if value.shape == before[key].shape}
    assert all(torch.equal(value, before[key]) for key, value in kept.items())


def test_an_operator_that_writes_into_many_weights_is_seen_before_it_does() -> None:
    many: Any = torch.__dict__["_foreach_mul_"]

    def forward(m: Any, x: Tensor) -> Tensor:
        many([m.a.weight.data, m.b.weight.data], 0.9)
        return plain(m, x)

    for model in (net(forward), net(lambda m, x: forward(m, x) + m.d(x.flatten(1)), d=nn.Linear(3 * 160 * 160, 4))):
        before = bits(model)
        assert not sc.groups(model, X)
        assert same(model, before)


def test_weights_of_whole_numbers_are_probed_too() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.c(F.conv2d(F.conv2d(x, m.i.float() / 9).relu(), m.j.float() / 9).mean((2, 3)))

    draw = torch.Generator().manual_seed(0)
    numbers = {
        name: nn.Parameter(torch.randint(1, 9, shape, dtype=torch.int8, generator=draw), requires_grad=False)
        for name, shape in (("i", (8, 3, 3, 3)), ("j", (12, 8, 3, 3)))
    }
    model = net(forward, **numbers)
    groups = sc.groups(model, X)
    small = sc.shrink(model, units={"i": [0, 3]}, example_inputs=X)
    masked = zeroed(model, dead_slices(groups, {"i": [0, 3]}))
    assert distance(run(masked, X), run(small, X)) < 1e-4


def test_two_parameters_in_one_memory_go_apart_as_in_a_deep_copy() -> None:
    model: Any = net(lambda m, x: m.c(m.d(m.b(m.a(x)).mean((2, 3))).relu()), d=nn.Linear(12, 12), e=nn.Linear(12, 12))
    model.e.weight = nn.Parameter(model.d.weight.data)
    small = sc.shrink(model, units={"d.weight": [1]}, example_inputs=X)
    assert (small.d.weight.shape, small.e.weight.shape) == ((11, 12), (12, 12))


def test_a_forward_that_runs_the_original_from_a_copy_is_refused() -> None:
    model: Any = net(plain)
    model.forward = lambda x: plain(model, x)  # type: ignore[method-assign]
    before = bits(model)
    assert "a.weight" in sc.groups(model, X)
    choices: list[dict[str, Any]] = [{"units": GONE}, {"params": 0.5}, {"from_zeros": True}]
    for choice in choices:
        for inplace in (True, False):
            with pytest.raises(ValueError, match=r"layers of the model itself.*MethodType"):
                sc.shrink(model, **choice, example_inputs=X, inplace=inplace)
    assert same(model, before)
    model.forward = types.MethodType(plain, model)  # type: ignore[method-assign]
    small = sc.shrink(model, units=GONE, example_inputs=X)
    assert small.a.out_channels == 6
    assert len(small.forward.__self__.a.weight) == 6


# Smaller images.


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: plain(m, x) + m.a(x)[:, : x.shape[-1] // 32].sum((1, 2, 3)).view(-1, 1),
        lambda m, x: m.c(m.b((h := m.a(x)) + h.roll(x.shape[-1] // 32, 1)).mean((2, 3))),
        lambda m, x: m.c(m.b(m.a(x)).softmax(1 if x.shape[-1] > 100 else 2).mean((2, 3))),
        lambda m, x: m.c(F.conv2d(m.a(x), (m.b if x.shape[-1] > 100 else m.e).weight.data).mean((2, 3))),
    ],
    ids=["a slice", "a roll", "an axis", "another weight's data"],
)
def test_channels_that_are_counted_by_the_size_of_an_image_are_traced_as_they_are(
    forward: Callable[[Any, Tensor], Tensor],
) -> None:
    model = net(forward, e=nn.Conv2d(8, 12, 3))
    assert smaller_size(model, [Example((X,))])[0] is None


def test_where_small_images_mislead_the_users_own_are_asked() -> None:
    """Nothing that is called tells that small images are no use: a layer of seven channels takes only the large."""

    def forward(m: Any, x: Tensor) -> Tensor:
        assert x.shape[-1] > 100 or m.a.weight.shape[0] == 8, "made for eight channels"
        return plain(m, x)

    model = net(forward)
    assert smaller_size(model, [Example((X,))])[0] == 0
    small = sc.shrink(model, units=GONE, example_inputs=X)
    masked = zeroed(model, dead_slices(sc.groups(model, X), GONE))
    assert distance(run(masked, X), run(small, X)) < 1e-5


# What is remembered.


@dataclass(slots=True)
class Slots:
    mode: int = 0


class Box:
    mode = 0

    def __call__(self) -> int:
        return self.mode


GLOBAL = [0]


class Modes(nn.Module):
    """Three layers that are coupled in one of several ways, as ``mode()`` says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.slots, self.array, self.deep, self.box = Slots(), np.zeros(1, int), [[[[[0]]]]], Box()
        self.few: set[int] = set()
        self.whole: Tensor
        self.real: Tensor
        self.register_buffer("whole", torch.tensor(0))
        self.register_buffer("real", torch.tensor(0.0))

    def mode(self) -> int:
        told = self.slots.mode + int(self.array[0]) + self.deep[0][0][0][0][0] + self.box() + len(self.few)
        return told + int(self.whole) + int(self.real) + GLOBAL[0]

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        g = self.b(h).relu()
        mode = self.mode()
        return self.c(g if mode == 0 else h + (g if mode == 1 else g.flip(1)))


def set_global(_: Any, mode: int) -> None:
    GLOBAL[0] = mode


HIDDEN: dict[str, Callable[[Any, int], Any]] = {
    "slots": lambda m, k: setattr(m.slots, "mode", k),
    "an array": lambda m, k: m.array.fill(k),
    "a deep list": lambda m, k: m.deep[0][0][0][0].__setitem__(0, k),
    "a callable": lambda m, k: setattr(m.box, "mode", k),
    "a set": lambda m, k: m.few.update(range(k)),
    "one whole number": lambda m, k: m.whole.fill_(k),
    "one real number": lambda m, k: m.real.fill_(k),
    "a method of the class": lambda m, k: setattr(type(m), "mode", lambda _: k),
    "a global": set_global,
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize("name", HIDDEN)
def test_what_no_look_at_a_model_tells_is_seen_when_it_runs(
    name: str, mode: int, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "GLOBAL", [0])
    model = type("Own", (Modes,), {})().eval()
    assert list(sc.groups(model, V, exact=exact)) == ["a.weight", "b.weight"]
    HIDDEN[name](model, mode)
    fresh = sc.groups(copy.deepcopy(model), V, exact=exact)
    assert list(fresh) == ["a.weight"]
    assert sc.groups(model, V, exact=exact).found == fresh.found
    small = sc.shrink(model, units={"a.weight": [1, 2]}, example_inputs=V, exact=exact)
    assert distance(run(zeroed(model, dead_slices(fresh, {"a.weight": [1, 2]})), V), run(small, V)) < 1e-5


def test_a_function_in_the_memory_of_another_is_another() -> None:
    model = Modes().eval()
    for mode in (0, 1) * 6:
        model.mode = lambda mode=mode: mode  # type: ignore[method-assign]
        found = learn(model, [Example((V,))]).groups(model, "channel", exact=True)
        assert list(found) == (["a.weight"] if mode else ["a.weight", "b.weight"])
        del model.mode
        gc.collect()


def test_masks_of_other_slices_than_go_together_now_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "GLOBAL", [1])
    model = Modes().eval()
    sc.prune(model, 0.5, unit="channel", example_inputs=V)
    before = bits(model)
    GLOBAL[0] = 2
    with pytest.raises(ValueError, match=r"'a.weight' are of other slices.*runs another way"):
        sc.shrink(model, example_inputs=V, inplace=True)
    assert same(model, before)
    GLOBAL[0] = 1
    assert distance(run(model, V), run(sc.shrink(model, example_inputs=V), V)) < 1e-5


def test_a_budget_that_cannot_be_met_keeps_its_own_kind_of_error() -> None:
    with pytest.raises(OutOfReach, match="cannot be met"):
        sc.shrink(net(plain), example_inputs=X, params=3)
