"""Every rule of the tracer on a network made for it, judged by masking: what can go, what stays and why."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from tests.oracles.removal import run
from tests.removal.trace_moves import MOVES, C, L, two
from tests.removal.trace_operators import OPERATORS
from tests.removal.traced_nets import Case, Made, distance, judge, seeded

CASES = [*MOVES, *OPERATORS]


def name_of(case: Case) -> str:
    return case.name.replace(" ", "-")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_what_can_go_goes_and_the_rest_says_why(case: Case) -> None:
    model, example = case.model(), case.example(2)
    groups = sc.groups(model, example, exact=case.exact)
    assert tuple(group.units for group in groups.values()) == case.sizes, str(groups)
    assert groups.unknown == case.unknown
    for axis, words in case.stays.items():
        assert re.search(words, groups.frozen.get(axis, "nothing")), groups.frozen
    if groups:
        judge(model, groups, example, [case.example(1), case.example(3)], exact=case.exact)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_trace_claims_it_before_any_probe(case: Case) -> None:
    groups = sc.groups(case.model(), case.example(2), exact=case.exact, verify=False)
    assert tuple(group.units for group in groups.values()) == (case.claimed or case.sizes), str(groups)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("case", CASES[::7], ids=name_of)
def test_the_batch_size_of_the_example_does_not_matter(case: Case, batch: int) -> None:
    model = case.model()
    found, again = (sc.groups(model, case.example(size), exact=case.exact) for size in (2, batch))
    assert found.found == again.found
    assert found.frozen == again.frozen


def test_nothing_of_the_model_or_of_torch_is_changed() -> None:
    model = Made(lambda m, x: m.b(m.norm(m.a(x)).relu().mean((2, 3))), a=C(2, 8, 3), b=L(8, 3), norm=nn.BatchNorm2d(8))
    model.double().train()
    model.b.weight.grad = torch.ones_like(model.b.weight)
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    flags = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled(), torch.is_grad_enabled()
    assert sc.groups(model, torch.randn(2, 2, 6, 6, generator=torch.Generator(), dtype=torch.float64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert model.b.weight.grad.eq(1).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert flags == (torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled(), torch.is_grad_enabled())
    assert torch.equal(drawn, torch.get_rng_state())


def branching(m: Made, x: Tensor) -> Tensor:
    h = m.a(x)
    if x.sum() > 0:
        h = h + m.c(x)
    return m.b(h)


def test_a_branch_on_data_is_refused_with_its_line() -> None:
    model = seeded(two(branching, c=lambda: L(6, 8)))
    with pytest.raises(ValueError, match=r"decides by its data at `if x.sum\(\) > 0:` \(test_trace.py:\d+\)"):
        sc.groups(model, torch.ones(2, 6, dtype=torch.float64))


def test_one_example_for_each_branch_finds_what_either_of_them_couples() -> None:
    model = seeded(two(branching, c=lambda: L(6, 8)))
    ones = torch.ones(2, 6, dtype=torch.float64)
    groups = sc.groups(model, [-ones, ones])
    assert {(m.name, m.part) for m in groups["a.weight"].members if m.part != "follows"} == {
        ("a.weight", "out"),
        ("c.weight", "out"),
        ("b.weight", "in"),
    }
    judge(model, groups, [-ones, ones], [-ones, ones])


def test_a_branch_on_whole_numbers_is_no_branch_on_data() -> None:
    def forward(m: Made, ids: Tensor) -> Tensor:
        assert ids.max() < 9
        return m.b(m.a(ids))

    ids = torch.randint(0, 9, (2, 4))
    groups = sc.groups(Made(forward, a=nn.Embedding(9, 8), b=L(8, 3)), ids)
    assert [group.units for group in groups.values()] == [8]


def test_keywords_and_nested_outputs() -> None:
    model = seeded(
        lambda: Made(lambda m, x, y: {"sum": m.b(m.a(x)), "rest": (y, [m.c(y)])}, a=L(6, 8), b=L(8, 3), c=L(6, 2))
    )
    model.forward = lambda left, right: model._run(model, left, right)  # type: ignore[method-assign]
    example = {"right": torch.ones(2, 6, dtype=torch.float64), "left": torch.ones(2, 6, dtype=torch.float64)}
    groups = sc.groups(model, example)
    assert list(groups) == ["a.weight"]
    assert "output of the model" in groups.frozen["c.weight out"]


def test_every_layer_is_either_in_a_group_or_has_a_reason() -> None:
    for case in CASES:
        model = case.model()
        groups = sc.groups(model, case.example(2), exact=case.exact, verify=False)
        told = {member.name for group in groups.values() for member in group.members}
        told |= {axis.removesuffix(" out") for axis in groups.frozen}
        layers = {n: m.weight.shape[0] for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
        assert not {f"{name}.weight" for name, width in layers.items() if width > 1} - told, case.name


def test_zero_weights_do_not_hide_what_is_coupled() -> None:
    case = CASES[0]
    model = case.model()
    with torch.no_grad():
        model.a.weight.zero_()  # type: ignore[union-attr]
    groups = sc.groups(model, case.example(2))
    small = sc.shrink(model, units={"a.weight": [0, 3]}, example_inputs=case.example(2))
    assert [group.units for group in groups.values()] == [8]
    assert distance(run(small, case.example(3)), run(model, case.example(3))) > 0, "the bias of what went was not zero"


@pytest.mark.parametrize("ask", [sc.groups, lambda model, x: sc.permute_channels(model, example_inputs=x)])
def test_inference_mode_hides_operators_and_is_refused(ask: Callable[..., object]) -> None:
    model, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 3)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"inside torch\.inference_mode"),
    ):
        ask(model, x)
    with torch.no_grad():
        assert ask(model, x)
