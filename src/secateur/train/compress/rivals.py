"""What a user would otherwise take: the dense model in half the bytes, or a narrower one trained from scratch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.records import Rival, Trial
from secateur.train.budget import OutOfReach
from secateur.train.compress.figures import as_trial, file_bytes
from secateur.train.compress.road import fresh
from secateur.train.compress.run import Run
from secateur.train.compress.setting import Setting, copied
from secateur.train.loop.fit import fit
from secateur.train.shrink import shrink

__all__ = ["in_bfloat16", "measure_rivals", "rival_model"]

_BF16 = "bfloat16"
_NARROWER = "narrower"
_EQUAL = 0.1
"""Widths come in whole channels: sizes that differ by less are called equal."""
_TRIES = 3


def in_bfloat16(model: nn.Module) -> nn.Module:
    """A copy in bfloat16 that takes and gives what the user's model does, and has its class and its names.

    Inputs are cast to bfloat16, outputs to float32; whole numbers stay as they are.

    Args:
        model: not changed.

    Example:
        >>> half = in_bfloat16(nn.Linear(2, 2))
        >>> half.weight.dtype, half(torch.zeros(1, 2)).dtype
        (torch.bfloat16, torch.float32)
    """
    twin = copied(model).to(torch.bfloat16)
    twin.register_forward_pre_hook(_halved, with_kwargs=True)
    twin.register_forward_hook(_widened)
    return twin


def _halved(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return cast("tuple[tuple[Any, ...], dict[str, Any]]", _cast((inputs, named), torch.bfloat16))


def _widened(_: nn.Module, __: Any, output: Any) -> Any:
    return _cast(output, torch.float32)


def measure_rivals(run: Run, chosen: Trial, epochs: int | None) -> tuple[Rival, ...]:
    """Both rivals, each measured or left out with its reason.

    Args:
        run: with its points.
        chosen: what they compete with.
        epochs: that the narrower one is trained; None: as many as the chosen point was.

    Returns:
        The rivals.
    """
    return (_bf16(run), _narrower(run, chosen, epochs))


def rival_model(run: Run, rival: Rival) -> nn.Module | None:
    """The model of a measured rival, for the report; None where there is none.

    Args:
        run: that measured it.
        rival: of that run.
    """
    if rival.trial is None:
        return None
    if rival.name == _BF16:
        return in_bfloat16(run.setting.dense)
    return run.shelf.get(rival.trial.key)


def _bf16(run: Run) -> Rival:
    setting = run.setting
    model = in_bfloat16(setting.dense)

    def measured() -> Trial:
        valid = setting.judge.score(model, setting.valid, "valid")
        return as_trial(setting, model, valid, key="bf16", family=_BF16, bytes=file_bytes(model))

    try:
        trial = run.known("rival", "bf16", measured)
        if setting.test is not None:
            trial = replace(trial, test=setting.judge.score(model, setting.test, "test"))
    except (RuntimeError, ValueError, TypeError) as error:  # no such operator, outputs that overflow, a metric's numpy
        return Rival(_BF16, None, f"it does not run: {error}")
    return Rival(
        _BF16,
        trial,
        "your model with every weight in two bytes, called with the same inputs, which it casts",
    )


def _narrower(run: Run, chosen: Trial, epochs: int | None) -> Rival:
    setting, goal = run.setting, run.goal
    epochs = chosen.epochs if epochs is None else epochs
    equal = "macs" if goal.of_time and not goal.of_file else "bytes"
    if not epochs:
        return Rival(_NARROWER, None, "left out: nothing was trained here, so it has no epochs; give rival_epochs=")
    key = f"narrower-{chosen.key}-{epochs}"

    def trained() -> Trial:
        small = _narrowed(setting, equal, getattr(chosen, equal))
        model = fresh(replace(setting, fresh_state=None), small)
        training = replace(setting.recovery, epochs=epochs, patience=None)
        path = run.shelf.path(key, "-0.checkpoint")
        found = fit(model, setting.train, training, checkpoint=path, progress=run.bar)
        valid = setting.judge.score(model.eval(), setting.valid, "valid")
        run.shelf.put(key, model)
        took = {"epochs": epochs, "steps": found.steps, "seconds": found.cost.wall_s}
        return as_trial(setting, model, valid, key=key, family=_NARROWER, **took)

    run.tell(f"a narrower dense network of equal {'multiply-adds' if equal == 'macs' else equal}, {epochs} epochs")
    try:
        trial = run.with_test(run.known("rival", key, trained))
    except OutOfReach as error:
        return Rival(_NARROWER, None, f"left out: {error}")
    except ValueError as error:
        return Rival(_NARROWER, None, f"left out: it cannot be made or trained: {error}")
    what = "multiply-adds" if equal == "macs" else "bytes"
    size, asked = getattr(trial, equal), getattr(chosen, equal)
    like = f"equal {what}" if abs(size - asked) <= _EQUAL * asked else f"{what} as near as they come"
    note = f"the same layers with fewer channels, {like}, {epochs} epochs of recovery from fresh weights"
    if epochs == chosen.epochs:
        note += "; the chosen one began from your trained weights: rival_epochs= gives this one their epochs too"
    return Rival(_NARROWER, trial, note)


def _narrowed(setting: Setting, equal: str, at_most: float) -> nn.Module:
    """As many multiply-adds or bytes; bytes of our file, which says more than the plain one that ``shrink`` counts."""

    def within(budget: float) -> nn.Module:
        asked: dict[str, Any] = {equal: budget}
        return shrink(setting.dense, example_inputs=setting.example, allocation="uniform", **asked)

    budget, small = float(at_most), within(at_most)
    for _ in range(_TRIES if equal == "bytes" else 0):
        over = file_bytes(small) - at_most
        if over <= 0:
            break
        budget -= over
        try:
            small = within(budget)
        except OutOfReach:  # this is the narrowest there is
            break
    return small


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in cast("tuple[Any, ...]", value))
    if isinstance(value, list):
        return [_cast(item, dtype) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in cast("dict[str, Any]", value).items()}
    return value
