"""What a recipe will do, in words and in tables: ``--dry-run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.cli.recipe.estimate import words

if TYPE_CHECKING:
    from secateur.cli.recipe.checks import Recipe
    from secateur.cli.recipe.estimate import Estimate
    from secateur.cli.recipe.folder import RunFolder
    from secateur.cli.recipe.resolve import Prepared
    from secateur.train.compress.candidates import Family

__all__ = ["as_json", "layers", "lines", "notes"]

_STATES = {"new": "new", "begun": "begun: running it continues", "finished": "finished: running it prints the result"}


def lines(recipe: Recipe, families: tuple[Family, ...], cost: Estimate, folder: RunFolder) -> list[tuple[str, str]]:
    """The plan as pairs of a word and what it says; one word may have several lines.

    Args:
        recipe: checked.
        families: what is searched.
        cost: of it.
        folder: of the run.

    Returns:
        Pairs.
    """
    found = [("goal", _goal(recipe))]
    for family in families:
        found += [(f"search, {family.name}", _stage(number, stage)) for number, stage in enumerate(family.stages, 1)]
    found.append(("choice", f"by {_metric(recipe)} on [data] valid, told on {_told(recipe)}"))
    found.append(("training", _training(recipe, cost)))
    rivals = "your model in bf16, and a narrower network trained from scratch"
    found.append(("rivals", rivals if recipe.search.rivals else "none: [search] rivals = false"))
    found.append(("cost", _cost(cost)))
    state = folder.state()
    tried = f", {folder.points()} points tried" if state == "begun" else ""
    found.append(("folder", f"{folder.path} ({_STATES[state]}{tried})"))
    return found + [("note", note) for note in notes(recipe)]


def notes(recipe: Recipe) -> list[str]:
    """What a recipe allows and its author may not expect."""
    found: list[str] = []
    if recipe.stages and recipe.stages[0].when == "before":
        found.append(
            'a stage "before" training begins with fresh weights: what is found is compared with the model of [model], '
            "but does not start from its weights"
        )
    if recipe.checkpoint is None:
        found.append("no checkpoint: the weights are those that the factory makes, and every drop is counted from them")
    if recipe.data.test is None:
        found.append("no [data] test: the figures told are those that the search chose by, so they flatter it")
    return found


def layers(prepared: Prepared) -> tuple[list[dict[str, Any]], str]:
    """A row for each layer: its parameters, multiply-adds of one sample, and what could be taken out.

    Args:
        prepared: model and inputs.

    Returns:
        Plain JSON rows, and why nothing is known of channels; empty where it is.
    """
    from secateur.measure.count import count

    made, problem = _channels(prepared)
    rows = [
        {
            "layer": row.name,
            "kind": row.kind,
            "shape": list(row.shape),
            "parameters": row.parameters,
            "macs": row.macs,
            "channels": made.get(row.name, ""),
        }
        for row in count(prepared.model, prepared.inputs).layers
    ]
    return rows, problem


def _channels(prepared: Prepared) -> tuple[dict[str, str], str]:
    """Layer -> its channels and their group, or why they stay."""
    from secateur.model.graph import groups as tracing

    try:
        groups = tracing.find_groups(prepared.model, prepared.inputs)
    except ValueError as error:  # masks need no trace, and stages of channels were traced before
        return {}, str(error)
    found: dict[str, str] = {}
    for group in groups.values():
        for member in group.members:
            if member.part == "out":
                found[member.name.rpartition(".")[0]] = f"{group.units} in group {group.name}"
    for axis, reason in groups.frozen.items():
        found.setdefault(axis.rpartition(" ")[0].rpartition(".")[0], f"none: {reason}")
    return found, ""


def as_json(
    recipe: Recipe, plan: dict[str, Any], families: tuple[Family, ...], cost: Estimate, folder: RunFolder
) -> dict[str, Any]:
    """The dry run for programs."""
    return {
        "plan": plan,
        "families": {family.name: list(family.describe()) for family in families},
        "cost": cost.to_record(),
        "folder": str(folder.path),
        "state": folder.state(),
        "notes": notes(recipe),
    }


def _goal(recipe: Recipe) -> str:
    from secateur.text import data_size, quantity

    given = recipe.goal
    said = []
    if given.max_drop is not None:
        said.append(f"at most {given.max_drop:g} point{'' if given.max_drop == 1 else 's'} lost")
    if given.speedup is not None:
        said.append(f"{given.speedup:g} x as fast, measured at batch {recipe.search.batch}")
    for name, show, what in (
        ("bytes", lambda v: data_size(int(v)), "a file"),
        ("params", quantity, "parameters"),
        ("macs", quantity, "multiply-adds"),
    ):
        value = getattr(given, name)
        if value is not None:
            amount = f"{100 * value:.3g} % of dense" if value <= 1 else show(value)
            said.append(f"{what} of at most {amount}" if name == "bytes" else f"at most {amount} in {what}")
    return ", ".join(said)


def _stage(number: int, stage: Any) -> str:
    told = stage.describe()
    words = told["unit"].removeprefix("channel")
    out = f"take channels out, scored {words}" if words else "take channels out"
    what = out if stage.kind == "channels" else f"mask, unit {told['unit']}"
    share = "sparsity searched" if stage.searched else f"sparsity {stage.plan(None).final:g}"
    parts = [f"{number}. {stage.when} training: {what}", f"by {told['criterion']}", told["allocation"], share]
    if stage.when == "during":
        parts.append(f"grows {stage.schedule or 'cubic'}")
    if stage.epochs is not None:
        parts.append(f"{stage.epochs} epochs")
    for key in ("targets", "exclude", "round_to"):
        if getattr(stage, key) is not None:
            parts.append(f"{key} {getattr(stage, key)}")
    return ", ".join(parts)


def _metric(recipe: Recipe) -> str:
    return recipe.goal.metric or "top-1 accuracy in per cent"


def _told(recipe: Recipe) -> str:
    return "the same, since there is no test" if recipe.data.test is None else "[data] test"


def _training(recipe: Recipe, cost: Estimate) -> str:
    given = recipe.recover
    rate = "" if given.lr is None else f", lr {given.lr:g}"
    steps = "" if cost.steps_per_epoch is None else f" of {cost.steps_per_epoch} steps"
    loss = given.loss or given.step or "of the model"
    return f"{given.optimizer}{rate}, {given.lr_schedule}, {cost.epochs} epochs{steps} per point, loss {loss}"


def _cost(cost: Estimate) -> str:
    points = f"at most {cost.points} points"
    if cost.train_s is None or cost.total_s is None or cost.steps_per_epoch is None:
        return f"{points}; a step takes {cost.step_ms:.3g} ms here, how many there are is known after the first epoch"
    steps = cost.points * cost.epochs * cost.steps_per_epoch
    return (
        f"{points}: {steps:,} steps of {cost.step_ms:.3g} ms, measured here on a copy; with the rivals about "
        f"{words(cost.total_s)} at most, measuring apart"
    )
