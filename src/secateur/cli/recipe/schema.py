"""The tables of a recipe, their keys, and what each may hold. The description of a key is its error message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from secateur.core import lookup, parse_spec, parse_unit, resolve_allocation, resolve_criterion, resolve_schedule

__all__ = ["SINGLE", "Data", "Goals", "Model", "Output", "Recover", "Search", "StageTable", "Table", "is_function"]


def is_function(name: str) -> bool:
    """Whether a method is given as ``package.module:function``; those are imported and checked elsewhere.

    Example:
        >>> is_function("nets:score"), is_function("cubic(power=2)")
        (True, False)
    """
    return ":" in name and "(" not in name


def _method(resolve: Callable[[str], Any]) -> AfterValidator:
    def check(name: str) -> str:
        if not is_function(name):
            resolve(name)
        return name

    return AfterValidator(check)


def _round_to(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    table = isinstance(value, dict) and all(
        isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value.values()
    )
    if not (whole or table or value == "measured"):
        raise ValueError('allowed is a whole number from 1, a table {"layer3*" = 8}, or "measured"')
    return value


def _optimizer(name: str) -> None:
    from secateur.train.loop.training import OPTIMIZERS

    lookup("optimizer", OPTIMIZERS, parse_spec(name)[0])


def _lr_schedule(name: str) -> None:
    from secateur.train.loop.lr_schedules import lr_factor

    lr_factor(name)


def _loss(name: str) -> None:
    from secateur.cli.functions import LOSSES

    lookup("loss", LOSSES, name)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_FUNCTION = '"package.module:function", a function without arguments'
Function: TypeAlias = Annotated[str, Field(min_length=1, description=_FUNCTION)]
Names: TypeAlias = Annotated[
    list[str] | None, BeforeValidator(_listed), Field(description='names or globs of layers, as ["conv*", "fc"]')
]
_FIGURE = "up to 1.0 a fraction of the dense model, above it the figure itself; more than 0"
Figure: TypeAlias = Annotated[float | None, Field(gt=0)]
Whole: TypeAlias = Annotated[int, Field(ge=1, description="a whole number from 1")]


class Table(BaseModel):
    """One table of the file: no other keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def given(self) -> dict[str, Any]:
        """What the user wrote, without what was left out."""
        return self.model_dump(exclude_unset=True, exclude_none=True)


class Model(Table):
    """``[model]``."""

    factory: Function
    checkpoint: Annotated[str | None, Field(description="a file, relative to the recipe")] = None


class Data(Table):
    """``[data]``."""

    train: Function
    valid: Function
    test: Annotated[str | None, Field(min_length=1, description=_FUNCTION)] = None


class StageTable(Table):
    """``[[stage]]``; what is left out is as ``sc.Stage`` has it."""

    when: Annotated[
        Literal["before", "during", "after"], Field(description='"before", "during" or "after" training')
    ] = "after"
    criterion: Annotated[str | None, _method(resolve_criterion), Field(description="a name of `secateur methods`")] = (
        None
    )
    unit: Annotated[str | None, _method(parse_unit), Field(description="a name of `secateur methods units`")] = None
    allocation: Annotated[
        str | None, _method(resolve_allocation), Field(description="a name of `secateur methods allocations`")
    ] = None
    sparsity: Annotated[
        float | None, Field(gt=0, lt=1, description="a share between 0 and 1, not per cent; left out: searched")
    ] = None
    schedule: Annotated[
        str | None, _method(resolve_schedule), Field(description="a name of `secateur methods schedules`")
    ] = None
    epochs: Annotated[int | None, Field(ge=0, description="a whole number from 0")] = None
    targets: Names = None
    exclude: Names = None
    round_to: Annotated[Any, AfterValidator(_round_to)] = None


class Recover(Table):
    """``[recover]``: the fields of ``sc.Training``; what is left out is as there."""

    epochs: Whole
    optimizer: Annotated[
        str, _method(_optimizer), Field(description="a name, or package.module:function of the parameters")
    ] = "adam"
    lr: Annotated[float | None, Field(gt=0, description="a number above 0")] = None
    weight_decay: Annotated[float, Field(ge=0, description="a number from 0")] = 0.0
    lr_schedule: Annotated[str, _method(_lr_schedule), Field(description="a name, or package.module:function")] = (
        "constant"
    )
    batch_size: Whole = 64
    loss: Annotated[str | None, _method(_loss), Field(description="a name, or package.module:function")] = None
    step: Annotated[str | None, Field(description='"package.module:function" of model and batch, returns the loss')] = (
        None
    )
    clip: Annotated[float | None, Field(gt=0, description="the largest norm of the gradients, above 0")] = None
    amp: Annotated[Literal["bf16", "fp16"] | None, Field(description='"bf16" or "fp16"')] = None
    accumulate: Whole = 1
    patience: Annotated[int | None, Field(ge=1, description="epochs, from 1")] = None
    seed: Annotated[int, Field(ge=0, description="a whole number from 0")] = 0


class Goals(Table):
    """``[goal]``: all of them have to hold."""

    max_drop: Annotated[float | None, Field(ge=0, description="points of the metric that may be lost, from 0")] = None
    speedup: Annotated[float | None, Field(gt=1, description="times as fast as dense, measured; above 1")] = None
    bytes: Annotated[Figure, Field(description=f"of the file, {_FIGURE}")] = None
    params: Annotated[Figure, Field(description=f"parameters, {_FIGURE}")] = None
    macs: Annotated[Figure, Field(description=f"multiply-adds of one sample, {_FIGURE}")] = None
    metric: Annotated[
        str | None, Field(description='"package.module:function" of model and data, larger is better')
    ] = None


class Search(Table):
    """``[search]``; what is left out is as ``sc.compress`` has it."""

    trials: Annotated[int | None, Field(ge=1, description="a whole number from 1")] = None
    method: Annotated[Literal["bisect", "optuna"], Field(description='"bisect" or "optuna"')] = "bisect"
    batch: Annotated[int, Field(ge=1, description="samples per call when time is measured, from 1")] = 1
    rivals: Annotated[bool, Field(description="true or false")] = True
    rival_epochs: Annotated[int | None, Field(ge=1, description="of the narrower rival, a whole number from 1")] = None
    seed: Annotated[int, Field(ge=0, description="a whole number from 0")] = 0


class Output(Table):
    """``[output]``."""

    folder: Annotated[str, Field(min_length=1, description="a folder, relative to the recipe")] = "runs"


SINGLE: dict[str, tuple[type[Table], bool]] = {
    "model": (Model, True),
    "data": (Data, True),
    "recover": (Recover, True),
    "goal": (Goals, True),
    "search": (Search, False),
    "output": (Output, False),
}
"""Table -> its keys, and whether a recipe needs it. Beside them stand any number of ``[[stage]]``."""
