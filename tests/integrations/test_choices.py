"""Shares of training become steps, and what does not go together is refused before training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.integrations.choices import Choices
from secateur.train.plan import Plan

SPARSE = {"sparsity": 0.8}


@given(
    shares=st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted),
    steps=st.integers(1000, 100_000),
)
def test_shares_become_the_nearest_steps(shares: list[int], steps: int) -> None:
    begin, end = (share / 1000 for share in shares)
    plan = Choices(begin=begin, end=end, others=SPARSE).plan_for(steps)
    assert plan is not None
    assert plan.end is not None
    assert abs(plan.begin - begin * steps) <= 0.5
    assert abs(plan.end - end * steps) <= 0.5
    assert len(plan.updates) <= 102
    assert plan.updates[-1] == plan.end
    assert plan.sparsity_at(steps) == 0.8


@pytest.mark.parametrize(
    ("choices", "steps", "expected"),
    [
        (Choices(), None, None),
        (Choices(Plan(0.5)), None, Plan(0.5)),
        (Choices(others=SPARSE), None, Plan(0.8)),
        (Choices(begin=30, others=SPARSE), None, Plan(0.8, begin=30)),
        (Choices(begin=10, end=50, others=SPARSE), None, Plan(0.8, begin=10, end=50, schedule="cubic")),
        (Choices(begin=0, end=0.5, others=SPARSE), 40, Plan(0.8, end=20, schedule="cubic")),
        (Choices(begin=0.5, others=SPARSE), 40, Plan(0.8, begin=20)),
        (Choices(end=1.0, every=0.25, others=SPARSE), 40, Plan(0.8, end=40, every=10, schedule="cubic")),
        (Choices(end=1000, others=SPARSE), None, Plan(0.8, end=1000, every=10, schedule="cubic")),
        (
            Choices(end=9, every=3, others={**SPARSE, "schedule": "linear", "criterion": "snip"}),
            None,
            Plan(0.8, end=9, every=3, schedule="linear", criterion="snip"),
        ),
        (Choices(others={"unit": "2 of 4"}), None, Plan(None, unit="2 of 4")),
    ],
)
def test_the_plan(choices: Choices, steps: int | None, expected: Plan | None) -> None:
    assert choices.plan_for(steps) == expected
    assert choices.holds_only == (expected is None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"plan": Plan(0.5), "others": SPARSE}, "a plan and sparsity beside it"),
        ({"plan": Plan(0.5), "end": 0.5}, "a plan and begin, end or every beside it"),
        ({"plan": 0.8}, "SecateurCallback\\(sparsity=0.8\\)"),
        ({"end": 0.5}, "say what to prune"),
        ({"others": {"sparcity": 0.8}}, "did you mean 'sparsity'"),
        ({"others": {"colour": 1}}, "a plan has sparsity, "),
        ({"begin": 1.5, "others": SPARSE}, "begin=1.5: floats are shares"),
        ({"begin": -0.1, "others": SPARSE}, "begin=-0.1: floats are shares"),
        ({"begin": 0.1, "end": 700, "others": SPARSE}, "one is a step, the other a share"),
        ({"begin": 10, "end": 0.7, "others": SPARSE}, "one is a step, the other a share"),
        ({"begin": 0.7, "end": 0.1, "others": SPARSE}, "is not after begin=0.7"),
        ({"begin": 7, "end": 1, "others": SPARSE}, "end=1 is before begin=7"),
        ({"begin": True, "others": SPARSE}, "begin=True: give a step"),
        ({"end": "late", "others": SPARSE}, "end='late': give a step"),
        ({"end": 9, "every": 0, "others": SPARSE}, "every=0; steps are whole numbers"),
        ({"others": {"sparsity": 80}}, "a share, not per cent"),
        ({"begin": 0.1, "end": 0.5, "others": {**SPARSE, "schedule": "one_shot"}}, "one_shot' prunes once"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Choices(**given)  # type: ignore[arg-type]


def test_a_training_too_short_and_one_without_end() -> None:
    choices = Choices(begin=0.1, end=0.2, others=SPARSE)
    with pytest.raises(ValueError, match="both step 0 of a training of 2 steps"):
        choices.plan_for(2)
    with pytest.raises(ValueError, match="number of steps is unknown"):
        choices.plan_for(None)
