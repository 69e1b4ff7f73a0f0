"""From a checked recipe to what ``sc.compress`` takes: the model, the data, the goal, the stages, the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from secateur.cli.recipe.mistakes import Mistake, Place, shown
from secateur.cli.recipe.schema import Recover, StageTable

if TYPE_CHECKING:
    from torch import nn

    from secateur.cli.recipe.checks import Recipe
    from secateur.train.compress import Goal, Stage
    from secateur.train.loop.training import Training

__all__ = ["Prepared", "goal_of", "prepare", "stages_of", "training_of"]

_DATA = ("train", "valid", "test")


@dataclass(frozen=True)
class Prepared:
    """What a recipe makes.

    Attributes:
        model: with its weights, in eval mode.
        data: ``train``, ``valid`` and, where named, ``test``.
        inputs: the model's in the first batch of ``train``.
    """

    model: nn.Module
    data: Mapping[str, Any]
    inputs: Any


def prepare(recipe: Recipe) -> Prepared:
    """Call the user's functions and look at what they return.

    Args:
        recipe: checked.

    Returns:
        The model, the data and example inputs.

    Raises:
        BadRecipe: with everything that does not fit.
    """
    import torch

    from secateur.cli.functions import first_inputs, make_data, make_model
    from secateur.cli.weights import fill
    from secateur.model.registry import find_masks
    from secateur.train.compress.setting import example_of

    mistakes: list[Mistake] = []
    torch.manual_seed(recipe.search.seed)
    model, data, inputs = None, {}, None
    try:
        model = make_model(recipe.model.factory)
        if recipe.checkpoint is not None:
            fill(model, recipe.checkpoint)
            if find_masks(model) is not None:
                raise ValueError("has masks, and a search begins with a dense model; name the weights of before")
    except ValueError as error:
        key = "factory" if model is None else "checkpoint"
        mistakes.append(_refused(("model", key), getattr(recipe.model, key), error))
    for key in _DATA:
        spec = getattr(recipe.data, key)
        if spec is None:
            continue
        try:
            data[key] = make_data("", spec)
            if isinstance(data[key], Iterator):
                raise ValueError(
                    "returned what can be read once, but every point reads it again; return a list of batches, a "
                    "DataLoader, or one (inputs, labels) pair"
                )
            found, _ = first_inputs(data[key])
            if key == "train" and model is not None:
                inputs = example_of(model, data[key], found if isinstance(found, dict) else None)
        except ValueError as error:
            mistakes.append(_refused(("data", key), spec, error))
    if model is not None and "train" in data and not mistakes:
        mistakes += _check_loss(recipe, data["train"])
        mistakes += [*_check_targets(recipe, model, inputs), *_check_sizes(recipe, model, inputs)]
    recipe.refuse(mistakes)
    assert model is not None
    return Prepared(model, data, inputs)


def training_of(recover: Recover, functions: Mapping[Place, Callable[..., Any]]) -> Training:
    """``[recover]`` as a ``Training``.

    Args:
        recover: the table.
        functions: of the recipe.

    Returns:
        The training; what was left out is as ``sc.Training`` has it.

    Raises:
        ValueError: for what ``sc.Training`` refuses.
    """
    import torch.nn.functional as F

    from secateur.cli.functions import LOSSES
    from secateur.train.loop.training import Training

    given: dict[str, Any] = recover.given()
    for key in ("loss", "step", "optimizer", "lr_schedule"):
        if ("recover", key) in functions:
            given[key] = functions["recover", key]
        elif key == "loss" and key in given:
            given[key] = getattr(F, LOSSES[given[key]])
    return Training(**given)


def goal_of(recipe: Recipe) -> Goal:
    """``[goal]`` as a ``Goal``."""
    from secateur.train.compress import Goal

    return Goal(**{key: value for key, value in recipe.goal.given().items() if key != "metric"})


def stages_of(recipe: Recipe) -> list[Stage] | None:
    """The stages; None where the recipe has none, and the search takes its own."""
    return [_stage(table) for table in recipe.stages] or None


def _stage(table: StageTable) -> Stage:
    from secateur.train.compress import Stage

    return Stage(**table.given())


def _refused(place: Place, given: Any, error: ValueError) -> Mistake:
    """Our own refusals become a line of the list; an error of the user's code keeps its traceback."""
    from secateur.cli.bad_input import is_ours

    if not is_ours(error):
        raise error
    text = str(error).removeprefix("--model").strip().removeprefix(str(given)).strip()
    return Mistake(place, text, shown(given))


def _check_loss(recipe: Recipe, train: Any) -> list[Mistake]:
    from secateur.model.batches import limited

    if recipe.recover.loss or recipe.recover.step:
        return []
    if isinstance(next(limited(train, 1)), Mapping):
        return []  # its model returns the loss
    text = 'batches are (inputs, labels) pairs, so a loss is needed, as loss = "cross_entropy"'
    return [Mistake(("recover", "loss"), text)]


def _check_targets(recipe: Recipe, model: nn.Module, inputs: Any) -> list[Mistake]:
    """Names that match nothing, stage by stage; and what the model's groups say to unit channel."""
    from secateur.core import parse_unit, unit_name
    from secateur.model.group_targets import find_layout

    found: list[Mistake] = []
    for number, stage in enumerate(recipe.stages):
        unit = parse_unit(stage.unit or "weight")[0]
        try:
            find_layout(model, stage.targets, stage.exclude, unit, inputs if unit_name(unit) == "channel" else None)
        except ValueError as error:
            key = next((name for name in ("targets", "exclude") if str(error).startswith(f"{name}=")), "unit")
            found.append(Mistake(("stage", number, key), str(error)))
    return found


def _check_sizes(recipe: Recipe, model: nn.Module, inputs: Any) -> list[Mistake]:
    """Sizes that the model has already, each by itself."""
    from secateur.measure.count import count
    from secateur.train.compress.figures import file_bytes
    from secateur.train.compress.goal import Goal

    counts = count(model, inputs)
    dense = {"bytes": file_bytes(model), "params": counts.kept, "macs": counts.macs}
    found: list[Mistake] = []
    for name, value in recipe.goal.given().items():
        if name in dense:
            try:
                Goal(**{name: value}).against(dense)
            except ValueError as error:
                text = str(error).partition(": ")[2].partition(": ")[2]
                found.append(Mistake(("goal", name), text, shown(value)))
    return found
