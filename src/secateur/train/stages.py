"""Stages of a reconstruction: choose what goes, solve, and change the model, one stage at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from secateur.core import CriterionLike, Within, evidence_needed
from secateur.core import score as score_units
from secateur.core.select import select
from secateur.core.solvers import Layer, SolverEntry, damped, from_groups, relative_error, to_groups
from secateur.core.units import parse_unit
from secateur.model.edited import edit
from secateur.model.evidence.inputs import InputSums
from secateur.model.evidence.stages import Stage
from secateur.model.masks import Masks
from secateur.model.names import find_parameter
from secateur.model.registry import forget_masks
from secateur.train.prune import cut
from secateur.types import NM, KeyLayout

__all__ = ["STAGE_KINDS", "Backup", "Job", "LayerError", "kept_so_far", "solve"]

STAGE_KINDS = frozenset({"weight", "input_norm", "gram"})
"""Evidence that is read anew at every stage."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """What a layer's outputs lost, ``||(W - W') X|| / ||W X||`` on the inputs that it was given.

    Attributes:
        name: the weight.
        before: with its mask alone.
        after: with its new weights.
        kept: share of its weights that stayed.
    """

    name: str
    before: float
    after: float
    kept: float


@dataclass(frozen=True, slots=True)
class Job:
    """All choices of a run."""

    model: nn.Module
    layout: Mapping[str, KeyLayout]
    dense: Mapping[str, Tensor]
    solver: SolverEntry
    criterion: CriterionLike
    within: Within
    keep: Mapping[str, int] | None
    evidence: Mapping[str, Mapping[str, Tensor]]
    damping: float
    before: Masks | None
    undo: bool


def kept_so_far(masks: Masks | None, name: str, key: KeyLayout) -> Tensor:
    """The mask of a weight; all kept where it has none."""
    return masks[name] if masks is not None and name in masks else torch.ones(key.shape, dtype=torch.bool)


def solve(job: Job, sums: InputSums, stage: Stage) -> list[LayerError]:
    """Choose, solve and apply one stage."""
    errors, masks, values = list[LayerError](), dict[str, Tensor](), dict[str, Tensor]()
    chosen = _choose(job, sums, stage)
    for name in stage.names:
        key, gram = job.layout[name], sums.evidence("gram", name, torch.device("cpu"))
        weight = to_groups(job.dense[name].cpu().double(), gram, key)
        kept = to_groups(chosen[name].cpu(), gram, key)
        remove = None if job.keep is None or not job.solver.chooses else weight.numel() - job.keep[name]
        pattern = job.within if job.solver.chooses and isinstance(job.within, NM) else None
        if pattern is not None and len(key.shape) > 2 and gram.shape[-1] != key.shape[1]:
            raise ValueError(
                f"{pattern} in {name!r} of shape {key.shape}: this solver chooses patterns along the "
                "inputs of linear layers; take solver='refit', which takes the criterion's pattern"
            )
        try:
            new, kept = job.solver.function(Layer(weight, damped(gram, job.damping), kept, remove, pattern))
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
        masks[name], values[name] = from_groups(kept, key), from_groups(new, key)
        off = relative_error(weight, weight * kept, gram), relative_error(weight, new, gram)
        errors.append(LayerError(name, *off, float(kept.double().mean())))
    held = job.before
    if job.keep is not None or isinstance(job.within, NM):
        layout = {name: job.layout[name] for name in stage.names}
        held = cut(job.model, masks, parse_unit("weight")[0], layout, job.undo)
    assert held is not None  # _layout
    edit(held, values)
    return errors


def _choose(job: Job, sums: InputSums, stage: Stage) -> dict[str, Tensor]:
    """The masks of a stage before its solver runs."""
    layout = {name: job.layout[name] for name in stage.names}
    so_far = {name: kept_so_far(job.before, name, key) for name, key in layout.items()}
    if job.solver.chooses or (job.keep is None and not isinstance(job.within, NM)):
        return so_far
    unit, kinds = parse_unit("weight")[0], evidence_needed(job.criterion)
    evidence = {kind: {n: t for n, t in found.items() if n in layout} for kind, found in job.evidence.items()}
    for kind in kinds:
        if kind == "weight":
            evidence[kind] = {name: job.dense[name] for name in layout}
        elif kind in STAGE_KINDS:
            evidence[kind] = {name: sums.evidence(kind, name, job.dense[name].device) for name in layout}
    scores = score_units(job.criterion, evidence, layout, unit)
    return select(scores, job.keep or {}, within=job.within, layout=layout, previous=so_far)


@final
class Backup:
    """What was there before, in case something goes wrong half-way."""

    def __init__(self, root: nn.Module, before: Masks | None) -> None:
        self._root, self._before = root, before
        self._units = {} if before is None else dict(before.unit_masks)
        self._values: dict[str, Tensor] = {}

    def keep(self, names: tuple[str, ...]) -> None:
        """These will change."""
        self._values |= {name: find_parameter(self._root, name).detach().clone() for name in names}

    @torch.no_grad()
    def put_back(self) -> None:
        """Values and masks as they were."""
        if self._before is None:
            forget_masks(self._root)
        else:
            whole = {n: torch.ones_like(mask) for n, mask in self._before.unit_masks.items()}
            self._before.update({**whole, **self._units})
        for name, value in self._values.items():
            find_parameter(self._root, name).detach().copy_(value)
