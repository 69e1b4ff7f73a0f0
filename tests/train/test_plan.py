"""Plans: what they refuse, what follows from them, and that they survive being written down."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.core import ALLOCATIONS, CRITERIA, SCHEDULES, UNITS, combine
from secateur.train import Plan
from secateur.types import NM


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"sparsity": 90}, r"sparsity=90 \(a share, not per cent\)"),
        ({"sparsity": 1.0}, "0 <= sparsity < 1"),
        ({"sparsity": -0.1}, "0 <= sparsity < 1"),
        ({"sparsity": None}, "sparsity is needed"),
        ({"sparsity": 0.5, "initial": 0.6}, "initial=0.6 is above sparsity=0.5"),
        ({"sparsity": 0.5, "criterion": "magnitud"}, "did you mean 'magnitude'"),
        ({"sparsity": 0.5, "unit": "filtre"}, "did you mean 'filter'"),
        ({"sparsity": 0.5, "allocation": "ekr"}, "unknown allocation 'ekr'"),
        ({"sparsity": 0.5, "schedule": "cubik", "end": 9}, "did you mean 'cubic'"),
        ({"sparsity": 0.5, "schedule": "cubic"}, "needs end > begin"),
        ({"sparsity": 0.5, "end": 9}, "one_shot.*prunes once"),
        ({"sparsity": 0.5, "begin": 5, "end": 3, "schedule": "linear"}, "end=3 is before begin=5"),
        ({"sparsity": 0.5, "begin": 0.5}, "begin=0.5; steps are whole numbers"),
        ({"sparsity": 0.5, "every": 0, "end": 4, "schedule": "linear"}, "every=0"),
        ({"sparsity": 0.5, "policy": "gentle"}, "known are 'hard' and 'soft'"),
        ({"sparsity": 0.5, "reduce": "median"}, "known are mean, sum, l2, rms and max"),
        ({"sparsity": 0.5, "min_density": 2}, "min_density=2"),
        ({"sparsity": 0.6, "within": NM(2, 4)}, "2 of 4 removes 0.5"),
        ({"sparsity": 0.5, "within": "2:4"}, "2 of 4"),
        ({"sparsity": 0.5, "within": "rows"}, "known are 'tensor'"),
        ({"sparsity": 0.5, "within": "filter"}, "known are 'tensor', 'row'"),
        ({"sparsity": 0.5, "within": "row", "unit": "filter"}, "selects weights inside rows"),
        ({"sparsity": None, "unit": "2 of 4", "allocation": "erk"}, "do not apply; leave them out"),
        ({"sparsity": None, "unit": "2 of 4", "min_density": 0.1}, "do not apply; leave them out"),
        ({"sparsity": 0.5, "rounds": 0}, "rounds=0: how many rounds to prune in, a whole number from 1"),
        ({"sparsity": 0.5, "rounds": 2.0}, "rounds=2.0: how many rounds"),
        ({"sparsity": 0.5, "rounds": True}, "rounds=True: how many rounds"),
        ({"sparsity": None, "unit": "2 of 4", "rounds": 3}, "rounds=3: 2 of 4 is reached at once"),
        ({"sparsity": None, "unit": "2 of 4", "schedule": "cubic", "end": 9}, "reached at once"),
    ],
)
def test_what_a_plan_refuses(choices: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Plan(**choices)  # type: ignore[arg-type]


def test_a_pattern_is_settled_however_it_is_given():
    ways = [
        Plan(None, unit="2 of 4"),
        Plan(None, unit=NM(2, 4)),
        Plan(None, within=NM(2, 4)),
        Plan(0.5, within="2 of 4"),
    ]
    assert len(set(ways)) == 1
    assert (ways[0].unit, ways[0].within, ways[0].sparsity) == ("weight", NM(2, 4), 0.5)


def test_sparsity_follows_the_catalogue_and_the_last_update_is_forced():
    """Catalogue 6.3 [N, B1], and its trap: a window that ``every`` does not divide."""
    plan = Plan(0.9, schedule="cubic", begin=100, end=1100, every=100)
    expected = [0, 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9]
    assert [round(plan.sparsity_at(step), 4) for step in plan.updates] == expected
    assert plan.sparsity_at(99) == 0.0
    assert plan.sparsity_at(10**6) == 0.9
    ragged = Plan(0.9, schedule="cubic", begin=100, end=1050, every=300)
    assert ragged.updates == (100, 400, 700, 1000, 1050)
    assert ragged.sparsity_at(1050) == 0.9


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
    st.integers(0, 50),
    st.integers(1, 200),
    st.integers(1, 40),
)
def test_every_schedule_is_monotone_between_its_ends(
    name: str, a: float, b: float, begin: int, length: int, every: int
):
    initial, final = min(a, b), max(a, b)
    end = None if name == "one_shot" else begin + length
    plan = Plan(final, initial=initial, schedule=name, begin=begin, end=end, every=every)
    path = [plan.sparsity_at(step) for step in range(begin, plan.last + 3)]
    assert all(x <= y + 1e-12 for x, y in itertools.pairwise(path))
    assert path[-1] == final
    assert min(path) >= initial - 1e-12
    assert plan.updates[-1] == plan.last


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("unit", sorted(UNITS))
def test_every_named_plan_is_its_record(criterion: str, unit: str):
    spec = "block(4, 1)" if unit == "block" else unit
    for allocation in ALLOCATIONS:
        plan = Plan(
            0.7, criterion=criterion, unit=spec, allocation=allocation, schedule="cosine", end=7, targets=["a", "b"]
        )
        again = Plan.from_record(json.loads(json.dumps(plan.to_record())))
        assert again.to_record() == plan.to_record()
        assert again.digest == plan.digest


def test_digests_tell_plans_apart():
    plans = [Plan(0.5), Plan(0.6), Plan(0.5, seed=1), Plan(0.5, policy="soft"), Plan(0.5, criterion="snip")]
    assert len({plan.digest for plan in plans}) == len(plans)
    same = [Plan(0.5, initial=0), Plan(0.5, initial=0.0), Plan(0.5, targets=["a"]), Plan(0.5, targets=("a",))]
    assert same[0] == same[1]
    assert same[2] == same[3] == Plan.from_record(json.loads(json.dumps(same[2].to_record())))
    assert len({plan.digest for plan in same}) == 2


def test_spellings_of_a_unit_are_one_plan():
    odd, plain = Plan(0.5, unit=" channel( all )"), Plan(0.5, unit="channel(all)")
    assert odd.describe() == plain.describe()
    assert odd.digest == plain.digest
    assert plain.describe()["unit"] == "channel(all)"


def test_rounds_are_part_of_a_plan_and_records_of_older_plans_stand():
    """What plans were before there were rounds: as the criterion's row says."""
    plain, five = Plan(0.5, criterion="snip"), Plan(0.5, criterion="snip", rounds=5)
    assert five.to_record() == {**plain.to_record(), "rounds": 5}
    assert Plan.from_record(json.loads(json.dumps(five.to_record()))) == five
    assert five.digest != plain.digest
    assert five.describe() == {**plain.describe(), "rounds": "5"}
    assert Plan(0.5).digest == "3a85a8643291"  # of a commit before there were rounds
    assert (plain.rounds_each, five.rounds_each, Plan(0.5, criterion="synflow").rounds_each) == (1, 5, 100)
    assert Plan(None, unit="2 of 4", criterion="synflow").rounds_each == 1


def mine(weight: Tensor) -> Tensor:
    return weight.abs()


def test_functions_work_and_say_when_they_cannot_be_written_down():
    assert Plan(0.5, criterion=combine({"l1": 1.0, "snip": 2.0})).to_record()["criterion"].startswith("combine(")
    plan = Plan(0.5, criterion=mine)
    assert Plan.from_record(plan.to_record()).criterion == f"{__name__}:mine"
    with pytest.raises(ValueError, match="cannot be written down"):
        Plan(0.5, criterion=lambda weight: weight.abs()).to_record()
    with pytest.raises(ValueError, match="use names or globs"):
        Plan(0.5, targets=nn.Linear).to_record()
    with pytest.raises(ValueError, match="is not imported yet"):
        Plan.from_record({"sparsity": 0.5, "criterion": "antigravity:fly"})
    with pytest.raises(ValueError, match="a plan has no 'sparsety'"):
        Plan.from_record({"sparsety": 0.5})
