"""What every round prunes: the choices, how much each time, and the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core import batches_needed, evidence_needed, unit_sizes
from secateur.model.evidence import DATA_KINDS
from secateur.model.group_targets import find_layout
from secateur.model.masks import Masks, find_masks, register_masks
from secateur.train.deciding import to_trace
from secateur.train.loop.feed import make_feed
from secateur.train.loop.randomness import borrowed
from secateur.train.loop.training import Training
from secateur.train.plan import Plan
from secateur.train.prune import prune
from secateur.train.recovery.rates import Cut, layer_rates, next_cut, sparsities_of
from secateur.types import KeyLayout

__all__ = ["Cutter"]


@dataclass
class Cutter:
    """Prunes one model further, round by round.

    Args:
        model: the model.
        plan: criterion, unit, allocation, targets; its sparsity is not read.
        data: of the training, where ``score_data`` is None.
        training: loss, step and batch size.
        rate: share of what is left that goes in each round.
        rates: other rates for some layers; all layers are pruned by themselves then.
        sparsities: share that is gone after each round, instead of a rate.
        score_data: batches for criteria that read data.
        init: first weights, for criteria that compare with them.
        example_inputs: for unit ``channel``.
        exact: for unit ``channel``.
    """

    model: nn.Module
    plan: Plan
    data: Any
    training: Training
    rate: float
    rates: Mapping[Any, float] | None = None
    sparsities: Sequence[float] | None = None
    score_data: Any = None
    init: Mapping[str, Tensor] | None = None
    example_inputs: Any = None
    exact: bool = True
    layout: dict[str, KeyLayout] = field(init=False)

    def __post_init__(self) -> None:
        if self.plan.is_pattern:
            raise ValueError(
                f"within={self.plan.within} is reached at once, so there are no rounds: sc.prune, then sc.recover"
            )
        if self.rates is not None and (self.sparsities is not None or self.plan.allocation != "global"):
            raise ValueError(
                "rates= says how much each layer loses in each round, so sparsities= and allocation= have no use "
                "beside it; leave them out"
            )
        plan = self.plan
        traced = to_trace(plan.criterion, plan.parsed_unit, self.example_inputs)
        self.layout = find_layout(self.model, plan.targets, plan.exclude, plan.parsed_unit, traced, self.exact)
        self.sizes = unit_sizes(plan.parsed_unit, self.layout)
        if self.sparsities is not None:
            self.sparsities = sparsities_of(self.sparsities)
        self._rate = layer_rates(self.model, self.layout, self.rate, self.rates)

    @property
    def settings(self) -> dict[str, Any]:
        """The choices as text, to tell whether a folder was begun with others."""
        described: dict[str, Any] = self.plan.describe()
        described["sparsity"] = "in rounds"
        described["rate"] = None if self.sparsities is not None else self._rate
        described["sparsities"] = None if self.sparsities is None else list(self.sparsities)
        return described | {"units": sum(self.sizes.values())}

    def left(self) -> dict[str, int]:
        """Units of each key that stay so far."""
        masks = find_masks(self.model)
        found: Mapping[str, Tensor] = {} if masks is None else masks.unit_masks
        return {key: int(found[key].sum()) if key in found else size for key, size in self.sizes.items()}

    def cut(self, index: int) -> Masks:
        """Prune for the round of this index, from 1.

        Raises:
            ValueError: for a round that would remove nothing, and for what ``sc.prune`` refuses.
        """
        given, plan = self.sparsities, self.plan
        cut = next_cut(self.sizes, self.left(), self._rate) if given is None else Cut(given[index - 1])
        return prune(
            self.model,
            cut.sparsity,
            criterion=plan.criterion,
            unit=plan.parsed_unit,
            allocation=plan.allocation if cut.counts is None else cut.allocation,
            within=plan.window,
            targets=plan.targets,
            exclude=plan.exclude,
            example_inputs=self.example_inputs,
            exact=self.exact,
            data=self._batches(),
            loss=self.training.loss,
            step=self.training.step,
            init=self.init,
            reduce=plan.reduce,
            min_density=plan.min_density,
            seed=plan.seed,
        )

    def take(self, unit_masks: Mapping[str, Tensor]) -> None:
        """Put masks on that were chosen before."""
        masks, plan = find_masks(self.model), self.plan
        if masks is None:
            whole = {key: torch.ones_like(mask) for key, mask in unit_masks.items()}
            masks = Masks(self.model, whole, plan.parsed_unit, self.layout)
            register_masks(self.model, masks)
        masks.add(self.layout)
        masks.update(unit_masks)

    def _batches(self) -> Any:
        """Batches for the criterion: those given, or the first of an epoch, read without leaving a trace."""
        needed = set(evidence_needed(self.plan.criterion))
        if self.score_data is not None or not needed & DATA_KINDS:
            return self.score_data
        device = next(self.model.parameters()).device
        feed = make_feed(self.data, self.training, device)
        with borrowed(device, feed.generators):
            return list(islice(feed.epoch(0), batches_needed(self.plan.criterion)))
