from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.core import (
    CRITERIA,
    batches_needed,
    combine,
    criterion_spec,
    evidence_needed,
    parse_unit,
    resolve_criterion,
    score,
)
from secateur.core.combine import average_ranks
from secateur.types import KeyLayout
from tests.oracles.core_oracles import average_rank_list

LAYOUT = {"a": KeyLayout((2, 3)), "b": KeyLayout((2, 2, 2, 2), kind="conv")}
WEIGHT, _ = parse_unit("weight")
FILTER, _ = parse_unit("filter")


def _random(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(one.shape, generator=generator, dtype=torch.float64) for key, one in LAYOUT.items()}


def test_evidence_is_asked_for_by_name() -> None:
    assert evidence_needed("snip") == ("weight", "grad_abs")
    assert evidence_needed("gate_taylor") == ("gate_grad_sq",)
    assert evidence_needed(combine({"l1": 1.0, "movement": 1.0, "large_init": 0.5})) == ("weight", "init")
    assert (batches_needed("snip"), batches_needed("taylor"), batches_needed(combine({"snip": 1, "taylor": 1}))) == (
        1,
        10,
        10,
    )


def test_missing_evidence_is_refused_in_words() -> None:
    evidence = {"weight": _random(0)}
    with pytest.raises(ValueError, match=r"'snip' reads the evidence 'grad_abs', which was not given"):
        score("snip", evidence, LAYOUT, WEIGHT)
    with pytest.raises(ValueError, match="'weight' has nothing for the parameter 'b'"):
        score("l1", {"weight": {"a": evidence["weight"]["a"]}}, LAYOUT, WEIGHT)


def test_hyperparameters_of_a_spec_reach_the_function() -> None:
    evidence = {"weight": {"a": torch.tensor([[4.0, 1.0]])}, "init": {"a": torch.tensor([[3.0, 1.0]])}}
    layout = {"a": KeyLayout((1, 2))}
    assert score("large_init_large_final", evidence, layout, WEIGHT)["a"].tolist() == [[3.0, 1.0]]
    assert score("large_init_large_final(alpha=0.5)", evidence, layout, WEIGHT)["a"].tolist() == [[2.0, 0.5]]
    assert criterion_spec("large_init_large_final( alpha=0.5 )") == "large_init_large_final(alpha=0.5)"


def test_the_default_reduction_is_the_row_s_and_may_be_changed() -> None:
    evidence = {"weight": {"a": torch.tensor([[3.0, -4.0, 0.0]])}}
    layout = {"a": KeyLayout((1, 3))}
    expected = {"l1": 7 / 3, "l2": (25 / 3) ** 0.5, "linf": 4.0, "l0": 2 / 3}
    for name, value in expected.items():
        assert score(name, evidence, layout, FILTER)["a"].item() == pytest.approx(value, rel=1e-6)
    assert score("l2", evidence, layout, FILTER, "l2")["a"].item() == pytest.approx(5.0)
    assert score("l0", evidence, layout, FILTER, "sum")["a"].item() == 2.0


def test_a_bare_function_is_a_criterion() -> None:
    evidence = {"weight": _random(0), "grad": _random(1)}
    found = score(lambda weight, grad: weight - grad, evidence, LAYOUT, WEIGHT)
    assert torch.equal(found["a"], evidence["weight"]["a"] - evidence["grad"]["a"])
    with pytest.raises(ValueError, match=r"of shape \(2,\) for 'a', but \(2, 3\) is needed: one per weight"):
        score(lambda weight: weight[:, 0], {"weight": _random(0)}, LAYOUT, WEIGHT)
    with pytest.raises(ValueError, match="keyword-only"):
        resolve_criterion(lambda weight, alpha=2.0: weight)


def test_unit_criteria_refuse_other_units_with_the_reason() -> None:
    gates = {"gate_grad_sq": {"a": torch.rand(2), "b": torch.rand(2)}}
    assert score("gate_taylor", gates, LAYOUT, FILTER)["b"].shape == (2,)
    with pytest.raises(
        ValueError, match=r"one score per channel or filter, because its evidence \(gate_grad_sq\)"
    ) as caught:
        score("gate_taylor", gates, LAYOUT, parse_unit("kernel")[0])
    assert "unit='channel' or 'filter'" in str(caught.value)
    with pytest.raises(ValueError, match="nothing to reduce"):
        score("gate_taylor", gates, LAYOUT, FILTER, "sum")
    with pytest.raises(ValueError, match="one per kernel"):
        score("random", {"noise": {"a": torch.rand(2, 3), "b": torch.rand(2, 3)}}, LAYOUT, parse_unit("kernel")[0])


def test_nan_in_the_weights_names_the_parameter() -> None:
    weight = _random(0)
    weight["b"][0, 0, 0, 0] = float("nan")
    for unit in (WEIGHT, FILTER):
        for criterion in ("l1", combine({"l1": 1.0})):
            with pytest.raises(ValueError, match="scores of 'b': 1 of"):
                score(criterion, {"weight": weight}, LAYOUT, unit)


def test_ranks_share_ties() -> None:
    values = [3.0, 1.0, 3.0, -2.0, 3.0, 1.0]
    assert average_ranks(torch.tensor(values)).tolist() == pytest.approx(average_rank_list(values))
    assert average_ranks(torch.tensor([7.0])).tolist() == [0.0]


def test_combination_by_rank_runs_over_all_keys() -> None:
    weight, grad = _random(0), _random(1)
    evidence = {"weight": weight, "grad_abs": {key: value.abs() for key, value in grad.items()}}
    found = score(combine({"l1": 1.0, "grad_magnitude": -2.0}), evidence, LAYOUT, WEIGHT)
    flat = [torch.cat([part[key].flatten() for key in LAYOUT]).abs().tolist() for part in (weight, grad)]
    first, second = average_rank_list(flat[0]), average_rank_list(flat[1])
    expected = [x - 2.0 * y for x, y in zip(first, second, strict=True)]
    assert torch.cat([found[key].flatten() for key in LAYOUT]).tolist() == pytest.approx(expected)
    assert found["b"].shape == LAYOUT["b"].shape


def test_combination_by_score_divides_by_the_sum() -> None:
    weight = {"a": torch.tensor([[1.0, -3.0]])}
    evidence = {"weight": weight, "grad_abs": {"a": torch.tensor([[5.0, 5.0]])}}
    layout = {"a": KeyLayout((1, 2))}
    found = score(combine({"l1": 1.0, "grad_magnitude": 2.0}, how="score"), evidence, layout, WEIGHT)
    assert found["a"].flatten().tolist() == pytest.approx([0.25 + 1.0, 0.75 + 1.0])
    nothing = {"weight": {"a": torch.zeros(1, 2)}}
    assert score(combine({"l1": 1.0}, how="score"), nothing, layout, WEIGHT)["a"].tolist() == [[0.0, 0.0]]


def test_combinations_round_trip_through_their_spec() -> None:
    plain = combine({"l1": 1.0, "snip": 2.0}, how="score")
    assert plain.spec == "combine(l1=1.0, snip=2.0, how='score')"
    nested = combine({"large_init_large_final(alpha=0.5)": 1.0, "l1": 3})
    for combination in (plain, nested):
        assert resolve_criterion(combination.spec) == combination
        assert criterion_spec(combination) == criterion_spec(combination.spec) == combination.spec


@pytest.mark.parametrize(
    "spec",
    [
        "combine()",
        "combine(l1='a')",
        "combine(l1=True)",
        "combine(snpi=1.0)",
        "combine(l1=1.0, how='vote')",
        "combine(3)",
    ],
)
def test_wrong_combinations_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"combine|snip"):
        resolve_criterion(spec)
    with pytest.raises(ValueError, match="finite"):
        combine({"l1": float("inf")})


def test_reading_evidence_changes_nothing() -> None:
    weight = {key: value.abs() + 0.1 for key, value in _random(0).items()}  # some evidence is positive by nature
    before = {key: value.clone() for key, value in weight.items()}
    evidence = dict.fromkeys((kind for name in CRITERIA for kind in evidence_needed(name)), weight)
    for name, entry in CRITERIA.items():
        if entry.level == "weight":
            score(name, evidence, LAYOUT, FILTER)
    assert all(torch.equal(weight[key], before[key]) for key in weight)


def test_a_combination_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="maps each criterion to its weight"):
        combine(["l1", "snip"])  # type: ignore[arg-type]
