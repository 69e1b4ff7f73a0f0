from __future__ import annotations

import functools

import pytest

from secateur.core import (
    CRITERIA,
    SCHEDULES,
    format_spec,
    hyperparameters,
    needs,
    parse_spec,
    resolve_schedule,
    spec_of,
)
from secateur.core.names import lookup
from secateur.core.schedules import cubic


def wave(progress: float, initial: float, final: float, *, height: float = 1.0) -> float:
    return final * height


@pytest.mark.parametrize(
    "spec",
    [
        "__import__('os').getcwd()",
        "block(print(1))",
        "a.b(1)",
        "f(**{'x': 1})",
        "f(x=y)",
        "f(1)(2)",
        "",
        "1",
        "f(",
    ],
)
def test_only_literals_are_read(spec: str) -> None:
    with pytest.raises(ValueError, match=r"write 'name' or|is no name"):
        parse_spec(spec)


def test_a_word_of_python_may_be_a_name() -> None:
    assert parse_spec(" global ") == ("global", (), {})
    assert parse_spec("f(-1, (2, 3), key='a, b)', on=True)") == ("f", (-1, (2, 3)), {"key": "a, b)", "on": True})


def test_unknown_name_lists_all_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown criterion 'snpi': did you mean 'snip'\?") as caught:
        lookup("criterion", CRITERIA, "snpi")
    assert all(name in str(caught.value) for name in CRITERIA)
    with pytest.raises(ValueError, match="unknown criterion 'zzz': Known"):
        lookup("criterion", CRITERIA, "zzz")


def test_hyperparameters_are_bound_and_checked() -> None:
    assert resolve_schedule("cubic(power=1)").function(0.25, 0.0, 0.8) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"has no hyper-parameter 'pwer': did you mean 'power'\?"):
        resolve_schedule("cubic(pwer=1)")
    with pytest.raises(ValueError, match="with their names"):
        resolve_schedule("cubic(1)")
    with pytest.raises(ValueError, match="should be a number"):
        resolve_schedule("cubic(power='three')")


def test_needs_and_hyperparameters() -> None:
    assert needs(wave) == ("progress", "initial", "final")
    assert hyperparameters(wave) == ("height",)
    assert needs(functools.partial(wave, height=2.0)) == ("progress", "initial", "final")
    with pytest.raises(ValueError, match="has a default but is positional"):
        needs(lambda weight, alpha=1.0: weight)
    with pytest.raises(ValueError, match="name every input"):
        needs(lambda *tensors: tensors)


def test_functions_have_names_where_they_can_be_found_again() -> None:
    assert spec_of("schedule", SCHEDULES, cubic) == "cubic"
    assert spec_of("schedule", SCHEDULES, functools.partial(cubic, power=2.0)) == "cubic(power=2.0)"
    assert spec_of("schedule", SCHEDULES, " cubic( power = 2.0 ) ") == "cubic(power=2.0)"
    with pytest.raises(ValueError, match="no importable name"):
        spec_of("schedule", SCHEDULES, lambda progress, initial, final: final)
    with pytest.raises(ValueError, match="no importable name"):
        spec_of("schedule", SCHEDULES, functools.partial(wave, height=2.0))


def test_a_name_imports_nothing() -> None:
    found = spec_of("schedule", SCHEDULES, format_spec)
    assert found == "secateur.core.names:format_spec"
    assert resolve_schedule("secateur.core.schedules:cubic").function is cubic
    with pytest.raises(ValueError, match="not imported yet"):
        resolve_schedule("this_module_is_nowhere:cubic")
    with pytest.raises(ValueError, match="has no function 'cubik'"):
        resolve_schedule("secateur.core.schedules:cubik")


def test_rows_functions_and_nonsense() -> None:
    row = SCHEDULES["cubic"]
    assert resolve_schedule(row) is row
    assert resolve_schedule(wave).function is wave
    with pytest.raises(ValueError, match="give a name"):
        resolve_schedule(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="it needs progress, initial, final"):
        resolve_schedule(lambda progress: progress)
