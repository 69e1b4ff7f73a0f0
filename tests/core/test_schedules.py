from __future__ import annotations

import pytest

from secateur.core import SCHEDULES, resolve_schedule, update_steps


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_and_outside_of_the_window(name: str) -> None:
    schedule = SCHEDULES[name].function
    assert schedule(-0.01, 0.2, 0.9) == 0.2
    assert schedule(1.0, 0.2, 0.9) == 0.9
    assert schedule(1.7, 0.2, 0.9) == 0.9
    if name == "one_shot":
        assert schedule(0.0, 0.2, 0.9) == 0.9
    elif name == "one_cycle":
        assert schedule(0.0, 0.2, 0.9) == pytest.approx(0.2 + 0.7 * 0.002473, abs=1e-6)
    else:
        assert schedule(0.0, 0.2, 0.9) == pytest.approx(0.2, abs=1e-15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_may_stand_still_or_fall(name: str) -> None:
    schedule = SCHEDULES[name].function
    assert schedule(0.5, 0.4, 0.4) == pytest.approx(0.4, abs=1e-15)
    falling = [schedule(p / 10, 0.8, 0.1) for p in range(11)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == 0.1


@pytest.mark.parametrize("name", SCHEDULES)
def test_wrong_sparsities_are_refused(name: str) -> None:
    for initial, final in ((-0.1, 0.5), (0.0, 1.5), (float("nan"), 0.5), (0.0, 90)):
        with pytest.raises(ValueError, match="from 0 to 1"):
            SCHEDULES[name].function(0.5, initial, final)
    with pytest.raises(ValueError, match="progress is NaN"):
        SCHEDULES[name].function(float("nan"), 0.0, 0.5)


def test_a_share_of_what_remains_never_removes_all() -> None:
    with pytest.raises(ValueError, match="never reached"):
        SCHEDULES["geometric"].function(0.5, 0.0, 1.0)
    assert SCHEDULES["exponential"].function is SCHEDULES["geometric"].function


def test_hyperparameters_have_limits() -> None:
    with pytest.raises(ValueError, match="above 0"):
        resolve_schedule("cubic(power=0)").function(0.5, 0.0, 0.9)
    with pytest.raises(ValueError, match="above 0"):
        resolve_schedule("one_cycle(alpha=-1)").function(0.5, 0.0, 0.9)
    assert resolve_schedule("one_cycle(alpha=1.0, beta=0.0)").function(0.5, 0.0, 0.9) < 0.9


def test_the_last_update_is_forced() -> None:
    assert update_steps(0, 10, 5) == (0, 5, 10)
    assert update_steps(0, 11, 5) == (0, 5, 10, 11)
    assert update_steps(3, 5, 100) == (3, 5)
    assert update_steps(7, 7, 1) == (7,)
    for wrong in ((5, 4, 1), (0, 4, 0), (-1, 4, 1)):
        with pytest.raises(ValueError, match="begin <= end"):
            update_steps(*wrong)


@pytest.mark.parametrize("spec", ["cubic(power=-1)", "one_cycle(alpha=0)"])
def test_a_bad_hyperparameter_is_refused_when_it_is_named_not_in_the_middle_of_training(spec: str) -> None:
    with pytest.raises(ValueError, match="has to be above 0"):
        resolve_schedule(spec)
