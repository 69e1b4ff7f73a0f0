"""From the dense model to one candidate: remove, train, remove, train."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.core.unit_channel import Channel
from secateur.model.masks import find_masks
from secateur.model.names import clean_name
from secateur.train.compress.setting import Setting, copied
from secateur.train.compress.stage import Stage
from secateur.train.loop.feed import steps_per_epoch
from secateur.train.loop.fit import fit
from secateur.train.loop.training import Training
from secateur.train.prune import prune
from secateur.train.pruner import Pruner
from secateur.train.recalibrate import batch_norms, recalibrate
from secateur.train.recovery.tickets import reinitialised
from secateur.train.shrink import shrink

__all__ = ["Arrival", "fresh", "trained", "training_of", "untrained"]

_GROWN = 0.75
"""Share of a ``"during"`` training at whose end the masks are final."""


@dataclass(frozen=True)
class Arrival:
    """A candidate at the end of its road, and what its training took."""

    model: nn.Module
    epochs: int
    steps: int
    seconds: float


def untrained(setting: Setting, stages: tuple[Stage, ...], sparsities: tuple[float, ...]) -> nn.Module:
    """A candidate of which nothing is trained: its sizes are those of the trained one, or nearly.

    Args:
        setting: of the run.
        stages: of its family.
        sparsities: one for each.

    Returns:
        The candidate.

    Raises:
        OutOfReach: if so many channels cannot go.
    """
    model = _start(setting, stages)
    for stage, sparsity in zip(stages, sparsities, strict=True):
        model = _removed(setting, model, stage, sparsity)
    return model.eval()


def trained(
    setting: Setting,
    stages: tuple[Stage, ...],
    sparsities: tuple[float, ...],
    *,
    checkpoint: Path | None = None,
    progress: Any = False,
) -> Arrival:
    """A candidate at the end of its road.

    Args:
        setting: of the run.
        stages: of its family.
        sparsities: one for each.
        checkpoint: where training in progress is kept, one file per stage with a number added to the name.
        progress: as ``fit`` takes it.

    Returns:
        The model, and what it took.
    """
    model = _start(setting, stages)
    epochs, steps, seconds = 0, 0, 0.0
    for number, (stage, sparsity) in enumerate(zip(stages, sparsities, strict=True)):
        training = training_of(setting, stage)
        pruner = None
        if stage.when == "during":
            assert training is not None, "a stage during training has epochs"
            pruner = _pruner(setting, model, stage, sparsity, training)
        else:
            model = _removed(setting, model, stage, sparsity)
        if training is not None:
            kept = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}-{number}.checkpoint")
            found = fit(
                model, setting.train, training, pruner=pruner, checkpoint=kept, progress=progress, **_judged(setting)
            )
            epochs, steps = epochs + len(found.history), steps + found.steps
            seconds += found.cost.wall_s
        if pruner is not None and stage.kind == "channels":
            pruner.detach()
            model = _norms(setting, shrink(model, example_inputs=setting.example))
    return Arrival(model.eval(), epochs, steps, seconds)


def training_of(setting: Setting, stage: Stage) -> Training | None:
    """How a stage is trained; None where it is not.

    Args:
        setting: of the run.
        stage: says how long, or leaves that to the recovery.
    """
    if stage.epochs == 0:
        return None
    return setting.recovery if stage.epochs is None else replace(setting.recovery, epochs=stage.epochs)


def fresh(setting: Setting, model: nn.Module) -> nn.Module:
    """A copy with fresh weights of the shapes that it has.

    Args:
        setting: says how they are made.
        model: not changed.

    Raises:
        ValueError: naming what nobody initialises, or a state dict of another network.
    """
    if setting.fresh_state is None:
        return reinitialised(model, setting.seed, init=setting.initialise).eval()
    twin = copied(model)
    state = {clean_name(name): tensor for name, tensor in setting.fresh_state.items()}
    known = {clean_name(name): tensor for name, tensor in twin.state_dict().items()}
    wrong = sorted(n for n in known.keys() | state.keys() if _shape(known.get(n)) != _shape(state.get(n)))
    if wrong:
        raise ValueError(f"init= is a state dict of another network than this model: it differs in {wrong[:6]}")
    with torch.no_grad():
        for name, tensor in known.items():
            tensor.copy_(state[name])
    return twin


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _start(setting: Setting, stages: tuple[Stage, ...]) -> nn.Module:
    before = stages[0].when == "before"
    return fresh(setting, setting.dense) if before else copied(setting.dense)


def _judged(setting: Setting) -> dict[str, Any]:
    """What ``fit`` needs to stop early; without it nothing is judged between epochs."""
    if setting.recovery.patience is None:
        return {}

    def metric(model: nn.Module, data: Any) -> float:
        return setting.judge.score(model, data, "valid").value

    return {"valid": setting.valid, "metric": metric}


def _evidence(setting: Setting) -> dict[str, Any]:
    recovery = setting.recovery
    return {"data": setting.evidence, "loss": recovery.loss, "step": recovery.step, "init": setting.fresh_state}


def _removed(setting: Setting, model: nn.Module, stage: Stage, sparsity: float) -> nn.Module:
    """What one stage removes, at once."""
    plan = stage.plan(sparsity)
    chosen: dict[str, Any] = {"criterion": plan.criterion, "targets": stage.targets, "exclude": stage.exclude}
    evidence = _evidence(setting)
    if stage.by_shrink:
        del evidence["init"]
        small = shrink(
            model,
            example_inputs=setting.example,
            sparsity=sparsity,
            unit=cast("str | Channel", stage.unit),
            allocation=cast("Any", stage.allocation),
            round_to=stage.round_to,
            seed=setting.seed,
            **chosen,
            **evidence,
        )
        return _norms(setting, small)
    example = setting.example if stage.kind == "channels" else None
    share = None if plan.is_pattern else sparsity
    prune(
        model,
        share,
        unit=cast("Any", stage.unit),
        allocation=stage.allocation,
        example_inputs=example,
        seed=setting.seed,
        undo=False,
        **chosen,
        **evidence,
    )
    if stage.kind == "channels":
        return _norms(setting, shrink(model, example_inputs=setting.example))
    return model


def _pruner(setting: Setting, model: nn.Module, stage: Stage, sparsity: float, training: Training) -> Pruner:
    total = training.epochs * steps_per_epoch(setting.train, training)
    plan = replace(stage.plan(sparsity, end=max(1, int(_GROWN * total))), seed=setting.seed)
    example = setting.example if stage.kind == "channels" else None
    return Pruner(model, plan, example_inputs=example, **_evidence(setting))


def _norms(setting: Setting, small: nn.Module) -> nn.Module:
    """Statistics behind removed channels are wrong until they are taken again."""
    if any(True for _ in batch_norms(small)):
        step = setting.recovery.step
        recalibrate(small, setting.evidence, step=step)
    assert find_masks(small) is None
    return small
