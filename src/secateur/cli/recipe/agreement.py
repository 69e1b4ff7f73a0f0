"""Each table alone is right; here is what does not go together, and what the package itself refuses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from secateur.cli.recipe.mistakes import Mistake, Place, shown
from secateur.cli.recipe.schema import Data, Goals, Recover, StageTable, is_function
from secateur.core import Combination, parse_unit, resolve_criterion, unit_name
from secateur.types import CriterionEntry

__all__ = ["check_data", "check_goal", "check_stages", "check_training"]

_Functions = Mapping[Place, Callable[..., Any]]


def check_goal(goal: Goals, stages: Sequence[StageTable]) -> list[Mistake]:
    """Goals that ask nothing, or what the stages cannot give.

    Args:
        goal: the table.
        stages: those that are right.

    Returns:
        The mistakes.
    """
    given = {name: value for name, value in goal.given().items() if name != "metric"}
    if not given:
        return [Mistake(("goal",), "asks for nothing; give one or more of max_drop, speedup, bytes, params, macs")]
    if not stages or any(unit_name(parse_unit(stage.unit or "weight")[0]) == "channel" for stage in stages):
        return []
    text = (
        "only taking something out makes a model faster, and no [[stage]] does: masks of weights make the file smaller "
        'and nothing else. Add a stage with unit = "channel"'
    )
    return [Mistake(("goal", name), text, shown(given[name])) for name in ("speedup", "macs") if name in given]


def check_stages(stages: Sequence[StageTable | None], functions: _Functions) -> list[Mistake]:
    """Stages whose choices contradict each other or the next stage, or that need what the recipe does not have.

    Args:
        stages: all of them; None for one that is wrong already.
        functions: that were found.

    Returns:
        The mistakes.
    """
    from secateur.train.compress.stage import Stage
    from secateur.train.compress.stage import check_stages as check_order

    found: list[Mistake] = []
    made: list[Stage] = []
    for number, table in enumerate(stages):
        place: Place = ("stage", number)
        if table is None or _not_found(table, place, functions):
            continue
        try:
            made.append(Stage(**table.given()))
        except ValueError as error:
            found.append(_from(error, place, table.given()))
            continue
        found += _check_unit(place, table)
        found += _check_evidence(place, table)
    if not found and made and len(made) == len(stages):
        try:
            check_order(made)
        except ValueError as error:
            number = re.match(r"stage (\d+)", str(error))
            place = ("stage",) if number is None else ("stage", int(number[1]) - 1)
            found.append(Mistake(place, re.sub(r"^stages?( \d+)?:? ", "", str(error))))
    return found


def check_data(data: Data) -> list[Mistake]:
    """The same function twice: what was learned or chosen by is no measure.

    Args:
        data: the table.

    Returns:
        The mistakes.
    """
    found: list[Mistake] = []
    for one, other, why in (
        ("train", "valid", "what was trained on chooses badly; hold some data out"),
        ("train", "test", "what was trained on is no test; hold some data out, or leave test out"),
        ("valid", "test", "what the search chose by is no test; hold some data out, or leave test out"),
    ):
        spec = getattr(data, other)
        if spec is not None and spec == getattr(data, one):
            found.append(Mistake(("data", other), f"is the same as {one}: {why}", shown(spec)))
    return found


def check_training(recover: Recover, functions: _Functions) -> list[Mistake]:
    """What ``sc.Training`` itself refuses.

    Args:
        recover: the table.
        functions: that were found.

    Returns:
        The mistakes.
    """
    from secateur.cli.recipe.resolve import training_of

    named = [key for key, value in recover.given().items() if key == "step" or is_function(str(value))]
    if any(("recover", key) not in functions for key in named):
        return []
    try:
        training_of(recover, functions)
    except ValueError as error:
        return [_from(error, ("recover",), recover.given())]
    return []


def _not_found(table: StageTable, place: Place, functions: _Functions) -> bool:
    """Whether a stage names a function that was not found, which is told already."""
    return any(isinstance(v, str) and is_function(v) and (*place, k) not in functions for k, v in table.given().items())


def _from(error: ValueError, place: Place, given: Mapping[str, Any]) -> Mistake:
    """A refusal of the package, under the key that it names."""
    text = re.sub(r"^(stage|goal|training): ", "", str(error))
    key = next((name for name in given if re.match(rf"{name}\b\s*=", text)), None)
    return Mistake(place if key is None else (*place, key), text)


def _check_unit(place: Place, stage: StageTable) -> list[Mistake]:
    """A criterion that says nothing about the unit; elsewhere this shows only once scores are there."""
    unit = unit_name(parse_unit(stage.unit or "weight")[0])
    for entry in _entries(stage.criterion):
        if entry.level == "unit" and entry.units is not None and unit not in entry.units:
            named = " or ".join(sorted(entry.units))
            text = (
                f"gives one score per {named} and says nothing about a {unit}; take unit = "
                f"{' or '.join(shown(name) for name in sorted(entry.units))}, or a criterion of level weight such as "
                '"taylor" or "l1"'
            )
            return [Mistake((*place, "criterion"), text, shown(stage.criterion))]
    return []


def _check_evidence(place: Place, stage: StageTable) -> list[Mistake]:
    """What the criterion reads and a recipe cannot give."""
    given = shown(stage.criterion)
    for entry in _entries(stage.criterion):
        if entry.data == "init":
            text = "compares with the weights before training, which a recipe cannot name; sc.prune(init=) can"
            return [Mistake((*place, "criterion"), text, given)]
        if entry.data == "training":
            text = "watches a training that a recipe cannot show it; sc.Pruner can"
            return [Mistake((*place, "criterion"), text, given)]
    return []


def _entries(criterion: str | None) -> list[CriterionEntry]:
    if criterion is None:
        return []
    resolved = resolve_criterion(criterion)
    return [entry for entry, _ in resolved.entries] if isinstance(resolved, Combination) else [resolved]
