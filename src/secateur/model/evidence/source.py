"""Where evidence comes from, and what a collector is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

from torch import Tensor, nn

from secateur.model.batches import LossFunction, StepFunction, check_functions
from secateur.model.names import check_state
from secateur.model.ranks import Ranks
from secateur.types import Evidence, Layout, Unit

__all__ = ["Request", "Source"]


@dataclass(frozen=True)
class Source:
    """Where evidence comes from, besides the model.

    Attributes:
        data: an iterable of batches, or one batch.
        loss: ``loss(output, labels)``.
        step: ``step(model, batch) -> loss``, for batches of any other shape.
        batches: how many batches to read.
        init: parameter name -> weights before training.
        seed: of the noise.
        mode: ``"eval"`` or ``"train"``, the mode of the passes.
        streamed: evidence that was collected during training.
        example: inputs of the model, for evidence that needs their shape alone.
        density: share of the units that will stay, where it is known.
    """

    data: Any = None
    loss: LossFunction | None = None
    step: StepFunction | None = None
    batches: int = 1
    init: Mapping[str, Tensor] | None = None
    seed: int = 0
    mode: Literal["eval", "train"] = "eval"
    streamed: Evidence | None = None
    example: Any = None
    density: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("eval", "train"):
            raise ValueError(f"mode={self.mode!r}; known are 'eval' and 'train'")
        if type(self.batches) is not int or self.batches < 1:
            raise ValueError(f"batches={self.batches!r}: how many batches to read, a whole number from 1")
        if self.init is not None:
            check_state(self.init, "init")
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral):
            raise ValueError(f"seed={self.seed!r}: give a whole number")
        check_functions(self.loss, self.step)


@dataclass(frozen=True)
class Request:
    """What one collector is asked for.

    Attributes:
        root: the unwrapped module.
        kinds: of its evidence, those that are wanted.
        layout: the targets: parameters, or coupled groups of slices of parameters.
        weights: the parameters behind the targets.
        unit: what is removed together.
        source: data, loss and the rest.
        settings: hyper-parameters of the criterion that asks.
        ranks: that read batches of their own each.
    """

    root: nn.Module
    kinds: tuple[str, ...]
    layout: Layout
    weights: Layout
    unit: Unit
    source: Source
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    ranks: Ranks = field(default_factory=Ranks)
