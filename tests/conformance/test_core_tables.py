"""Every criterion, unit, allocation and schedule joins here: a row that is missing or extra fails the first test."""

from __future__ import annotations

import doctest
import inspect
import itertools

import pytest
import torch
from torch import Tensor

from secateur.core import (
    ALLOCATIONS,
    CRITERIA,
    SCHEDULES,
    UNITS,
    decide,
    evidence_needed,
    needs,
    parse_unit,
    removed_count,
    score,
    unit_name,
    unit_sizes,
)
from secateur.core.unit_channel import parameter_layout
from secateur.types import NM, KeyLayout, Layout
from tests.oracles.channel_nets import CHAIN, RESIDUAL

CRITERION_ROWS = {  # name -> evidence, may scores be negative
    "magnitude": (("weight",), False),
    "l1": (("weight",), False),
    "l2": (("weight",), False),
    "linf": (("weight",), False),
    "l0": (("weight",), False),
    "random": (("noise",), False),
    "geometric_median": (("weight",), False),
    "cosine": (("weight", "bias"), False),
    "weight_correlation": (("weight",), False),
    "srinivas_babu": (("weight", "bias", "outgoing"), False),
    "weight_entropy": (("weight",), True),
    "bn_scale": (("bn_scale",), False),
    "grad_magnitude": (("grad_abs",), False),
    "snip": (("weight", "grad_abs"), False),
    "snip_signed": (("weight", "grad"), False),
    "taylor": (("weight", "grad_sq"), False),
    "gate_taylor": (("gate_grad_sq",), False),
    "taylor_2017": (("gate_example_abs",), False),
    "gate_taylor_fg": (("gate_example_sq",), False),
    "gate_taylor_so": (("gate_change_sq",), False),
    "head_importance": (("reader_gate_abs",), False),
    "mean_activation": (("activation_mean",), False),
    "apoz": (("activation_zeros",), False),
    "wanda": (("weight", "input_norm"), False),
    "ria": (("weight", "input_norm", "input_sum", "output_sum"), False),
    "activation_entropy": (("activation_pooled",), False),
    "hrank": (("activation_rank",), False),
    "activation_correlation": (("activation_covariance",), False),
    "thinet": (("contribution_gram",), False),
    "lda_dependency": (("top_dependency",), False),
    "lda": (("activation_max", "activation_pooled", "labels"), False),
    "large_final": (("weight",), False),
    "small_final": (("weight",), True),
    "large_init": (("init",), False),
    "small_init": (("init",), True),
    "large_init_large_final": (("weight", "init"), False),
    "small_init_small_final": (("weight", "init"), True),
    "magnitude_increase": (("weight", "init"), True),
    "movement": (("weight", "init"), False),
    "movement_sanh": (("movement",), True),
    "grasp": (("weight", "hessian_gradient"), True),
    "synflow": (("weight", "flow"), False),
    "force": (("weight", "grad_abs"), False),
    "iter_snip": (("weight", "grad_abs"), False),
    "prospr": (("weight", "meta_grad"), False),
    "prospr_gate": (("meta_gate",), False),
    "fisher": (("weight", "fisher_diagonal"), False),
    "taylor_second": (("loss_change_sq",), False),
    "obd": (("weight", "hessian_diagonal"), False),
    "obs": (("weight", "inverse_hessian_diagonal"), False),
    "woodfisher": (("weight", "inverse_fisher_diagonal"), False),
    "taylor_2017_flops": (("gate_example_abs", "unit_macs"), False),  # below 0 where costs are large: not here
    "woodfisher_flops": (("weight", "inverse_fisher_diagonal", "macs"), False),
}
UNIT_ROWS = ["weight", "row", "column", "kernel", "filter", "in_channel", "layer", "block(3, 2)"]
UNIT_ROWS += ["channel", "channel(all)"]
ONE_PER_ROW = {"filter", "in_channel", "layer", "channel", "channel(all)"}
ALLOCATION_ROWS = ["uniform", "global", "erk", "er", "uniform_plus", "lamp", "owl"]
SCHEDULE_ROWS = ["one_shot", "linear", "geometric", "exponential", "cubic", "one_cycle", "cosine"]
PER_UNIT = {"gate_grad_sq", "gate_example_abs", "gate_example_sq", "gate_change_sq", "reader_gate_abs"}
PER_UNIT |= {"activation_mean", "activation_zeros", "activation_rank", "unit_macs", "top_dependency"}
OF_EXAMPLES = {"contribution_gram", "activation_pooled", "activation_max", "activation_covariance", "labels"}
PER_GROUP = {"contribution_gram", "reader_gate_abs"}
POSITIVE = {"grad_abs", "grad_sq", "input_norm", "input_sum", "output_sum", "fisher_diagonal", "loss_change_sq"}
POSITIVE |= {"inverse_hessian_diagonal", "inverse_fisher_diagonal", "macs"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

LAYOUT: Layout = {
    "conv": KeyLayout((4, 2, 3, 3), kind="conv", role="first"),
    "grouped": KeyLayout((4, 2, 2, 2), kind="conv", groups=2),
    "turned": KeyLayout((4, 3, 2), kind="conv_transpose", groups=2),
    "embed": KeyLayout((9, 6), kind="embedding", role="embedding"),
    "out": KeyLayout((8, 10), role="output"),
}
GROUPS: Layout = {**CHAIN, **RESIDUAL}


def layout_for(unit_spec: str, criterion: str = "") -> Layout:
    if criterion == "bn_scale" and unit_spec.startswith("channel"):  # groups that something with one axis follows
        return {name: key for name, key in GROUPS.items() if any(m.part == "follows" for m in key.members)}
    return GROUPS if unit_spec.startswith("channel") else LAYOUT


def test_the_tables_are_the_rows_above() -> None:
    assert set(CRITERIA) == set(CRITERION_ROWS)
    assert set(UNITS) == {spec.split("(", maxsplit=1)[0] for spec in UNIT_ROWS}
    assert set(ALLOCATIONS) == set(ALLOCATION_ROWS)
    assert set(SCHEDULES) == set(SCHEDULE_ROWS)


def _evidence(names: tuple[str, ...], unit_spec: str, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    unit, _ = parse_unit(unit_spec)
    generator = torch.Generator().manual_seed(7)
    found: dict[str, dict[str, Tensor]] = {}
    for name in names:
        per_unit = name in PER_UNIT or name in ("noise", "bias", "bn_scale", "meta_gate")
        found[name] = {}
        layout = layout_for(unit_spec)
        # Whose evidence is of parameters, and of their outputs.
        of_groups = layout is GROUPS and name not in ("noise", *PER_GROUP)
        for key, one in (parameter_layout(layout) if of_groups else layout).items():
            grid = one.shape[:1] if of_groups else unit.grid(one)
            tensor = torch.randn(grid if per_unit else one.shape, generator=generator)
            positive = per_unit or name in POSITIVE
            tensor = tensor.sigmoid() if name == "activation_zeros" else tensor  # a share
            tensor = _of_examples(name, grid[0], generator) if name in OF_EXAMPLES else tensor
            found[name][key] = (tensor.abs() if positive else tensor).to(dtype)
    return found


def _of_examples(name: str, units: int, generator: torch.Generator) -> Tensor:
    """Evidence of twelve examples."""
    own = torch.randn(units, 12, generator=generator)
    matrix = own @ own.t() / 12
    known = {"labels": torch.arange(12) % 3, "activation_covariance": matrix, "contribution_gram": matrix}
    return known.get(name, own)


def _refused(criterion: str, unit: str, allocation: str, within: object) -> str | None:
    entry = CRITERIA[criterion]
    if entry.units is not None and unit.split("(", maxsplit=1)[0] not in entry.units:
        return "one score per"
    if allocation == "lamp" and CRITERION_ROWS[criterion][1]:
        return "lamp squares the scores"
    if allocation == "owl" and CRITERION_ROWS[criterion][1]:
        return "owl compares scores with their mean"
    if within == "row" and unit in ONE_PER_ROW:
        return "each output row has one unit"
    return None


def _combinations() -> list[tuple[str, torch.dtype, object]]:
    every = [(allocation, torch.float32, "tensor") for allocation in ALLOCATION_ROWS]
    every += [("global", dtype, "tensor") for dtype in DTYPES[1:]]
    return every + list(itertools.product(["global", "erk"], [torch.float32], ["row"]))


@pytest.mark.parametrize("unit", UNIT_ROWS)
@pytest.mark.parametrize("criterion", CRITERION_ROWS)
def test_every_method_decides_exactly(criterion: str, unit: str) -> None:
    resolved, _ = parse_unit(unit)
    layout = layout_for(unit, criterion)
    sizes = unit_sizes(resolved, layout)
    total = sum(sizes.values()) - removed_count(sum(sizes.values()), 0.6)
    for allocation, dtype, within in _combinations():
        evidence = _evidence(CRITERION_ROWS[criterion][0], unit, dtype)
        call = {
            "criterion": criterion,
            "unit": unit,
            "allocation": allocation,
            "within": within,
            "sparsity": 0.6,
            "evidence": evidence,
            "layout": layout,
        }
        reason = _refused(criterion, unit, allocation, within)
        if reason is not None:
            with pytest.raises(ValueError, match=reason):
                decide(**call)
            continue
        masks = decide(**call)
        assert list(masks) == list(layout)
        for key, mask in masks.items():
            assert mask.dtype == torch.bool
            assert mask.shape == resolved.grid(layout[key])
        kept = sum(int(mask.sum()) for mask in masks.values())
        if within == "row":  # rounds in each row
            assert abs(kept - total) <= 0.5 * sum(mask.shape[0] for mask in masks.values())
        else:
            assert abs(kept - total) <= (0.5 * len(layout) if allocation == "uniform" else 0)
        weights = resolved.expand(masks, layout)
        assert all(torch.equal(back, masks[key]) for key, back in resolved.pool(weights, layout).items())


@pytest.mark.parametrize("criterion", CRITERION_ROWS)
def test_criteria_ask_for_what_they_say_and_widen(criterion: str) -> None:
    names, signed = CRITERION_ROWS[criterion]
    assert evidence_needed(criterion) == needs(CRITERIA[criterion].function) == names
    units = CRITERIA[criterion].units
    spec = "filter" if units is None or "filter" in units else "channel"
    for dtype in DTYPES:
        unit, _ = parse_unit(spec)
        found = score(criterion, _evidence(names, spec, dtype), layout_for(spec), unit)
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert all(value.dtype == expected for value in found.values())
    unit, _ = parse_unit("weight" if units is None else spec)
    found = score(criterion, _evidence(names, unit_name(unit), torch.float32), layout_for(unit.spec), unit)
    assert signed == any(bool((value < 0).any()) for value in found.values())


@pytest.mark.parametrize("criterion", [name for name in CRITERION_ROWS if CRITERIA[name].units is None])
@pytest.mark.parametrize("pattern", ["2 of 4", "1 of 2", NM(1, 4)])
def test_every_criterion_selects_n_of_m(criterion: str, pattern: str | NM) -> None:
    evidence = _evidence(CRITERION_ROWS[criterion][0], "weight", torch.float32)
    masks = decide(
        criterion=criterion,
        unit=pattern,
        allocation="global",
        within="tensor",
        sparsity=None,
        evidence=evidence,
        layout=LAYOUT,
    )
    _, window = parse_unit(pattern)
    assert isinstance(window, NM)
    full = 8 // window.of * window.of
    assert masks["out"][:, :full].reshape(8, -1, window.of).sum(2).eq(window.keep).all()
    assert masks["out"][:, 10 - 10 % window.of :].all()


@pytest.mark.parametrize("name", CRITERION_ROWS)
def test_criteria_are_documented_with_a_formula_and_a_source(name: str) -> None:
    entry = CRITERIA[name]
    text = inspect.getdoc(entry.function) or ""
    assert all(part in text for part in ("Args:", "Returns:", "Example:", "Reference:", "s"))
    assert entry.summary
    assert entry.reference
    assert entry.data in ("none", "init", "batches", "training")
    assert doctest.DocTestFinder().find(entry.function)[0].examples


def test_pipeline_refuses_contradictions() -> None:
    call = {"criterion": "l1", "allocation": "global", "layout": LAYOUT}
    evidence = _evidence(("weight",), "weight", torch.float32)
    with pytest.raises(ValueError, match=r"the pattern itself removes 0\.5"):
        decide(unit="2 of 4", within="tensor", sparsity=0.9, evidence=evidence, **call)
    with pytest.raises(ValueError, match="contradicts"):
        decide(unit="2 of 4", within="row", sparsity=None, evidence=evidence, **call)
    with pytest.raises(ValueError, match="sparsity is missing"):
        decide(unit="weight", within="tensor", sparsity=None, evidence=evidence, **call)
    with pytest.raises(ValueError, match="take unit='weight'"):
        decide(unit="filter", within=NM(2, 4), sparsity=None, evidence=evidence, **call)


def test_a_second_decision_only_removes_more() -> None:
    evidence = _evidence(("weight",), "weight", torch.float32)
    call = {"criterion": "l1", "unit": "kernel", "within": "tensor", "evidence": evidence, "layout": LAYOUT}
    for allocation in ALLOCATION_ROWS:
        first = decide(allocation="global", sparsity=0.4, **call)
        second = decide(allocation=allocation, sparsity=0.7, previous=first, **call)
        assert all(not bool((second[key] & ~first[key]).any()) for key in LAYOUT)
    first = decide(allocation="global", sparsity=0.4, **{**call, "unit": "weight"})
    second = decide(allocation="global", sparsity=None, previous=first, **{**call, "unit": "2 of 4"})
    assert all(not bool((second[key] & ~first[key]).any()) for key in LAYOUT)
