"""Stages of a reconstruction: choose what goes, solve, and change the model, one stage at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.core import CriterionLike, Within, evidence_needed
from secateur.core import score as score_units
from secateur.core.select import select
from secateur.core.solvers import (
    Layer,
    Pairs,
    SolverEntry,
    aim,
    damped,
    from_groups,
    mean_shift,
    pair_error,
    relative_error,
    split_pairs,
    to_groups,
)
from secateur.core.units import parse_unit
from secateur.model.edited import EditedValues, edit
from secateur.model.evidence.input_sums import InputSums
from secateur.model.evidence.stages import Stage
from secateur.model.evidence.weight_sums import SUM_KINDS
from secateur.model.masks import Masks
from secateur.model.names import find_parameter
from secateur.model.registry import forget_masks
from secateur.model.removed import RemovedValues
from secateur.train.prune import cut
from secateur.types import NM, KeyLayout

__all__ = ["STAGE_KINDS", "Backup", "Job", "LayerError", "kept_so_far", "solve"]

STAGE_KINDS = frozenset({"weight", "input_norm", "gram", *SUM_KINDS})
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
    """All choices of a run.

    Attributes:
        model: as the user gave it.
        layout: the weights.
        dense: what they were, and whatever else was changed.
        solver: a row of the table.
        criterion: chooses where the solver does not.
        within: where weights compete.
        keep: how many weights each layer keeps; None: as the masks or the pattern say.
        evidence: what was read once.
        damping: share of the mean diagonal.
        before: masks that the model has.
        undo: keep the old values.
        biases: weight -> its bias, where the aim is what the dense model made; None: what the dense layer would make.
    """

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
    biases: Mapping[str, str] | None = None


def kept_so_far(masks: Masks | None, name: str, key: KeyLayout) -> Tensor:
    """The mask of a weight; all kept where it has none."""
    return masks[name] if masks is not None and name in masks else torch.ones(key.shape, dtype=torch.bool)


def solve(job: Job, sums: InputSums, stage: Stage) -> list[LayerError]:
    """Choose, solve and apply one stage."""
    grams = {name: sums.evidence("gram", name, torch.device("cpu")) for name in stage.names}
    pairs = {name: _pairs(gram, sums.seen(name)) for name, gram in grams.items()} if job.biases is not None else {}
    grams |= {name: both.now for name, both in pairs.items()}
    chosen = _choose(job, sums, grams, stage)
    errors, masks, values = list[LayerError](), dict[str, Tensor](), dict[str, Tensor]()
    for name in stage.names:
        key, gram = job.layout[name], grams[name]
        weight = to_groups(job.dense[name].cpu().double(), gram, key)
        bias = None if job.biases is None else job.biases.get(name)
        wanted, square = weight, damped(gram, job.damping)
        if name in pairs:
            wanted, square = aim(weight, pairs[name], job.damping, shifts=bias is not None)
        new, kept = _solved(job, name, wanted, square, to_groups(chosen[name].cpu(), gram, key))
        masks[name], values[name] = from_groups(kept, key), from_groups(new, key)
        if name in pairs:
            shift = None if bias is None else mean_shift(weight, new, pairs[name])
            alone, shift = _with_its_mask(job, bias, shift)
            off = pair_error(weight, weight * kept, pairs[name], alone), pair_error(weight, new, pairs[name], shift)
            if bias is not None and shift is not None:
                values[bias] = job.dense[bias] + shift.flatten().to(job.dense[bias])
        else:
            off = relative_error(weight, weight * kept, gram), relative_error(weight, new, gram)
        errors.append(LayerError(name, *off, float(kept.double().mean())))
    held = job.before
    if job.keep is not None or isinstance(job.within, NM):
        layout = {name: job.layout[name] for name in stage.names}
        held = cut(job.model, masks, parse_unit("weight")[0], layout, job.undo)
    assert held is not None  # the model had masks
    edit(held, values)
    return errors


def _with_its_mask(job: Job, bias: str | None, shift: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What a bias that is a target itself takes up: nothing where it is removed, and there its own value is missing.

    Returns:
        For the mask alone, and with new weights; None: nothing.
    """
    masks = job.before
    if bias is None or shift is None or masks is None or bias not in masks.layout:
        return None, shift
    gone, missing = ~masks[bias].view_as(shift), -job.dense[bias].to(shift).view_as(shift)
    return torch.where(gone, missing, 0.0), torch.where(gone, missing, shift)


def _pairs(gram: Tensor, seen: bool) -> Pairs:
    if seen:
        return split_pairs(gram)
    nothing = gram.new_zeros(gram.shape[:2])  # inputs that never came count as equally large, and as they were
    return Pairs(gram, gram, gram, nothing, nothing, gram.new_ones(gram.shape[0]))


def _solved(job: Job, name: str, weight: Tensor, gram: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    key = job.layout[name]
    remove = None if job.keep is None or not job.solver.chooses else weight.numel() - job.keep[name]
    pattern = job.within if job.solver.chooses and isinstance(job.within, NM) else None
    if pattern is not None and len(key.shape) > 2 and gram.shape[-1] != key.shape[1]:
        raise ValueError(
            f"{pattern} in {name!r} of shape {key.shape}: this solver chooses patterns along the inputs of linear "
            "layers; take solver='refit', which takes the criterion's pattern"
        )
    try:
        return job.solver.function(Layer(weight, gram, kept, remove, pattern))
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error


def _choose(job: Job, sums: InputSums, grams: Mapping[str, Tensor], stage: Stage) -> dict[str, Tensor]:
    """The masks of a stage before its solver runs."""
    layout = {name: job.layout[name] for name in stage.names}
    so_far = {name: kept_so_far(job.before, name, key) for name, key in layout.items()}
    if job.solver.chooses or (job.keep is None and not isinstance(job.within, NM)):
        return so_far
    unit, kinds = parse_unit("weight")[0], evidence_needed(job.criterion)
    evidence = {kind: {n: t for n, t in found.items() if n in layout} for kind, found in job.evidence.items()}
    for kind in STAGE_KINDS.intersection(kinds):
        evidence[kind] = {name: _evidence(job, sums, kind, name, grams[name]) for name in layout}
    scores = score_units(job.criterion, evidence, layout, unit)
    return select(scores, job.keep or {}, within=job.within, layout=layout, previous=so_far)


def _evidence(job: Job, sums: InputSums, kind: str, name: str, gram: Tensor) -> Tensor:
    weight, key = job.dense[name], job.layout[name]
    if kind == "weight":
        return weight
    if kind == "gram":
        return gram.to(weight.device)
    if kind in SUM_KINDS:
        return sums.weight_sum(kind, name, weight)
    rows = to_groups(weight.cpu(), gram, key).shape[1]
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()[:, None].expand(-1, rows, -1)
    return from_groups(norms, key).to(weight.device)


@final
class Backup:
    """What was there before, in case something goes wrong half-way."""

    def __init__(self, root: nn.Module, before: Masks | None) -> None:
        self._root, self._before = root, before
        # Tensors in there are replaced, never written to, so that copies of what holds them are enough.
        self._memory = {} if before is None else {name: _copied(value) for name, value in vars(before).items()}
        self._values: dict[str, Tensor] = {}

    def keep(self, names: Iterable[str]) -> None:
        """These will change."""
        self._values |= {name: find_parameter(self._root, name).detach().clone() for name in names}

    @torch.no_grad()
    def put_back(self) -> None:
        """Values and masks as they were, and what ``undo()`` needs."""
        if self._before is None:
            forget_masks(self._root)
        else:
            vars(self._before).update(self._memory)
        for name, value in self._values.items():
            find_parameter(self._root, name).detach().copy_(value)


def _copied(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, RemovedValues | EditedValues) else value
