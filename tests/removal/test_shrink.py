"""``sc.shrink``: what it refuses, that refusing changes nothing, and what it does with optimizers and wrappers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import secateur as sc
from secateur.model.graph.rules import joining
from secateur.types import NM
from tests.oracles.removal import run, shapes, zeroed
from tests.removal.traced_nets import Made, dead_slices, distance, seeded

X = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
UNITS = {"a.weight": [1, 5], "b.weight": [0, 2, 3]}


def forward(m: Made, x: Tensor) -> Tensor:
    h = m.norm(m.a(x)).relu()
    h = h + m.b(h).relu() if m.residual else m.b(h).relu()
    return m.c(h.mean((2, 3)))


def make(residual: bool = False) -> nn.Module:
    def build() -> nn.Module:
        a, b = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        return Made(forward, a=a, b=b, c=nn.Linear(8, 3), norm=nn.BatchNorm2d(8), residual=residual)

    return seeded(build)


def trained(model: nn.Module) -> Optimizer:
    """Adam after two steps."""
    optimizer = Adam(model.parameters(), lr=0.02)
    for _ in range(2):
        step(model, optimizer)
    return optimizer


def step(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def everything(model: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """All bits that must not change by mistake."""
    bits: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        gradient = tensor.grad
        bits[name] = (
            tensor.data_ptr(),
            id(tensor),
            tensor.detach().clone(),
            None if gradient is None else gradient.clone(),
        )
    for name, module in model.named_modules():
        bits[f"module {name}"] = {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, tuple))}
    if optimizer is not None:
        for number, state in enumerate(optimizer.state.values()):
            bits[f"state {number}"] = {k: (id(v), v.clone()) if isinstance(v, Tensor) else v for k, v in state.items()}
    return bits


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def check_refused(model: nn.Module, words: str, **given: Any) -> None:
    """It raises with these words, in place or not, and not a bit of model or optimizer is another one."""
    optimizer = trained(model) if any(p.requires_grad for p in model.parameters()) else None
    check_refused_with(model, optimizer, words, given)


def check_refused_with(model: nn.Module, optimizer: Optimizer | None, words: str, given: dict[str, Any]) -> None:
    before, attributes = everything(model, optimizer), set(vars(model))
    for inplace in (True, False):
        with pytest.raises(ValueError, match=words):
            sc.shrink(model, **{"example_inputs": X, **given}, optimizer=optimizer, inplace=inplace)
        assert same(before, everything(model, optimizer)), "something changed"
        assert attributes == set(vars(model))


def test_no_masks() -> None:
    check_refused(make(), "has no masks: call sc.prune")


@pytest.mark.parametrize("unit", ["weight", "filter", NM(2, 4)], ids=str)
def test_masks_of_another_unit(unit: Any) -> None:
    model = make()
    masks = sc.prune(model, 0.5, unit=unit, targets=["b.weight"])
    check_refused_with(model, None, "not whole channels of a coupled group", {"masks": masks})


def test_masks_of_another_model() -> None:
    other = make()
    check_refused(make(), "another model", masks=sc.prune(other, 0.5, unit="channel", example_inputs=X))


def test_zeros_that_grew_back() -> None:
    model = make()
    sc.prune(model, 0.5, unit="channel", example_inputs=X)
    with torch.no_grad():
        model.a.weight.add_(1.0)  # type: ignore[union-attr, operator]
    check_refused_with(model, None, r"attach\(optimizer\)", {})


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ({"a.weigth": [0]}, "only the groups .*a.weight"),
        ({"c.weight": [0]}, "nothing can be removed there: it is an output"),
        ({"a.weight": [8]}, "unit 8: it has units 0 to 7"),
        ({"a.weight": [-1]}, "unit -1"),
        ({"a.weight": [True]}, "unit True"),
        ({"a.weight": [1.0]}, "unit 1.0"),
        ({"a.weight": [0], "b.weight": range(8)}, "all 8 units: at least one has to stay"),
    ],
)
def test_unknown_units(units: dict[str, Any], words: str) -> None:
    check_refused(make(), words, units=units)


@pytest.mark.parametrize(
    ("given", "words"),
    [([], "holds no example"), (3, "give the model's input tensor"), (None, "give the model's input tensor")],
)
def test_example_inputs_of_no_use(given: Any, words: str) -> None:
    check_refused(make(), words, units=UNITS, example_inputs=given)


def test_example_inputs_that_the_model_does_not_take() -> None:
    model = make()
    before = everything(model)
    with pytest.raises(RuntimeError, match="channels"):
        sc.shrink(model, units=UNITS, example_inputs=torch.randn(2, 5, 6, 6, dtype=torch.float64), inplace=True)
    assert same(before, everything(model))


def test_an_optimizer_that_cannot_be_sliced() -> None:
    model = make()
    optimizer = torch.optim.LBFGS(model.parameters())
    before = everything(model)
    for inplace in (True, False):
        with pytest.raises(ValueError, match="LBFGS"):
            sc.shrink(model, units=UNITS, example_inputs=X, optimizer=optimizer, inplace=inplace)
        assert same(before, everything(model))


def test_a_rule_that_lies_is_found_out_by_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted lie: what meets element by element is not coupled, so a residual's branches go apart."""
    model, honest = make(residual=True), sc.groups(make(residual=True), X)
    assert [group.units for group in honest.values()] == [8]
    optimizer = trained(model)

    def liar(relations: Any, one: Any, other: Any, reason: str) -> Any:
        return one if one.axes == other.axes else true(relations, one, other, reason)

    true = joining.meet
    monkeypatch.setattr(joining, "meet", liar)
    lied = sc.groups(model, X, verify=False)
    assert len(lied["a.weight"].members) < len(honest["a.weight"].members), "the lie is not told"
    monkeypatch.setattr("secateur.train.shrink.find_groups", lambda *args, **kwargs: lied)
    check_refused_with(model, optimizer, "nothing was changed: .*probes", {"units": {"a.weight": [1]}})


def test_what_a_literal_holds_stays_while_the_rest_goes() -> None:
    def literal(m: Made, x: Tensor) -> Tensor:
        return m.c(m.b(m.a(x).relu()).view(-1, 8 * 36))

    parts = {"a": nn.Conv2d(2, 8, 3, padding=1), "b": nn.Conv2d(8, 8, 3, padding=1), "c": nn.Linear(288, 3)}
    model = seeded(lambda: Made(literal, **parts))
    groups = sc.groups(model, X)
    assert list(groups) == ["a.weight"]
    assert "view(-1, 8 * 36)" in groups.frozen["b.weight out"]
    check_refused_with(model, None, "nothing can be removed there: .*view", {"units": {"b.weight": [0]}})
    small = sc.shrink(model, units={"a.weight": [0, 1, 2]}, example_inputs=X)
    assert distance(run(zeroed(model, dead_slices(groups, {"a.weight": [0, 1, 2]})), X), run(small, X)) < 1e-9


@pytest.mark.parametrize("inplace", [True, False])
def test_in_place_or_not(inplace: bool) -> None:
    model, groups = make(), sc.groups(make(), X)
    before, masked = everything(model), zeroed(model, dead_slices(groups, UNITS))
    small = sc.shrink(model, units=UNITS, example_inputs=X, inplace=inplace)
    assert (small is model) == inplace
    assert same(before, everything(model)) != inplace
    assert shapes(small)["a.weight"] == (6, 2, 3, 3)
    assert shapes(small)["b.weight"] == (5, 6, 3, 3)
    assert (small.a.out_channels, small.b.in_channels, small.norm.num_features, small.c.in_features) == (6, 6, 6, 5)
    assert distance(run(masked, X), run(small, X)) < 1e-9
    if inplace:
        assert sc.find_masks(model) is None


@pytest.mark.parametrize("inplace", [True, False])
def test_the_masks_of_the_model_are_taken_and_forgotten_in_place_only(inplace: bool) -> None:
    model = make()
    masks = sc.prune(model, 0.5, unit="channel", example_inputs=X)
    expected, kept = run(model, X), sum(int(mask.sum()) for mask in masks.unit_masks.values())
    small = sc.shrink(model, example_inputs=X, inplace=inplace)
    assert distance(expected, run(small, X)) < 1e-9
    assert kept == small.a.out_channels + small.b.out_channels == 8
    assert (sc.find_masks(model) is None) == inplace


@pytest.mark.parametrize("inplace", [True, False])
def test_adam_goes_on_as_the_masked_model_would(inplace: bool) -> None:
    model = make()
    optimizer = trained(model)
    dead = dead_slices(sc.groups(model, X), UNITS)
    masked, slow = copy.deepcopy((model, optimizer))
    before = everything(model, optimizer)
    small, fast = sc.shrink(model, units=UNITS, example_inputs=X, optimizer=optimizer, inplace=inplace)
    assert (fast is optimizer) == inplace
    assert inplace or same(before, everything(model, optimizer))
    assert all(a is b for a, b in zip(fast.param_groups[0]["params"], small.parameters(), strict=True))
    masked.load_state_dict(zeroed(masked, dead).state_dict())
    for _ in range(3):
        step(small, fast)
        step(masked, slow)
        masked.load_state_dict(zeroed(masked, dead).state_dict())
        assert distance(run(masked, X), run(small, X)) < 1e-9
    for number, state in enumerate(fast.state.values()):
        parameter = fast.param_groups[0]["params"][number]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
        assert float(state["step"]) == 5


def test_layer_norm_goes_only_when_told_and_says_that_it_is_not_exact() -> None:
    def normed(m: Made, x: Tensor) -> Tensor:
        return m.b(m.norm(m.a(x)))

    model = seeded(lambda: Made(normed, a=nn.Linear(6, 8), b=nn.Linear(8, 3), norm=nn.LayerNorm(8)))
    x = torch.randn(4, 6, dtype=torch.float64)
    check_refused_with(
        model, None, "layer norm takes mean and variance over it", {"units": {"a.weight": [0]}, "example_inputs": x}
    )
    groups = sc.groups(model, x, exact=False)
    assert not groups["a.weight"].exact
    assert "not exact: a layer norm" in str(groups)
    small = sc.shrink(model, units={"a.weight": [0, 4]}, example_inputs=x, exact=False)
    assert small.norm.normalized_shape == (6,)
    assert small(x).shape == (4, 3)
    assert distance(run(zeroed(model, dead_slices(groups, {"a.weight": [0, 4]})), x), run(small, x)) > 1e-6


@pytest.fixture
def one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("kind", ["distributed", "compiled"])
def test_wrappers_are_looked_through(kind: str, inplace: bool) -> None:
    root = make()
    wrapped = (
        nn.parallel.DistributedDataParallel(root) if kind == "distributed" else torch.compile(root, backend="eager")
    )
    dead = dead_slices(sc.groups(wrapped, X), UNITS)
    expected = run(zeroed(make(), dead), X)
    small = sc.shrink(wrapped, units=UNITS, example_inputs=X, inplace=inplace)
    if inplace:
        assert small is wrapped
        assert root.a.out_channels == 6
        small = root
    assert type(small) is Made
    assert distance(expected, run(small, X)) < 1e-9
