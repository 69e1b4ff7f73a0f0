"""One stage of a road: when, what and how much is removed, and how long is trained afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from secateur.core import AllocationLike, CriterionLike, parse_unit
from secateur.core.unit_channel import Channel
from secateur.train.plan import Plan
from secateur.train.widths import RoundTo
from secateur.types import NM, Schedule, Unit

__all__ = ["Stage", "check_stages"]

_SHRINK_SPREADS = ("global", "uniform")


@dataclass(frozen=True)
class Stage:
    """Remove something, then train.

    A road from a dense model to a smaller one is a list of stages: ``[Stage(unit="channel"), Stage()]`` takes channels
    out, trains, masks weights, trains. Channels are taken out for good, other units are masked.

    Args:
        when: ``"after"`` training: from the trained weights; ``"during"``: the masks grow while it is trained;
            ``"before"``: the road begins with fresh weights, which have never been trained.
        criterion: what scores the units; None: magnitude, of channels their l2 norm.
        unit: what is removed together.
        allocation: how many units each layer keeps.
        schedule: how sparsity grows ``"during"`` training; None: cubic, over the first three quarters.
        sparsity: share of units to remove; None: searched.
        epochs: of training after (``"during"``: while) it; None: as ``recovery`` says.
        targets: names, globs or types; None: the default targets, all groups of channels.
        exclude: what of that stays dense.
        round_to: channels: widths are multiples of this.

    Raises:
        ValueError: for choices that do not go together.

    Example:
        >>> Stage(unit="channel", sparsity=0.5).kind
        'channels'
    """

    when: Literal["before", "during", "after"] = "after"
    criterion: CriterionLike | None = None
    unit: str | Unit | NM = "weight"
    allocation: AllocationLike = "global"
    schedule: str | Schedule | None = None
    sparsity: float | None = None
    epochs: int | None = None
    targets: Any = None
    exclude: Any = None
    round_to: RoundTo = None

    def __post_init__(self) -> None:
        for name in ("targets", "exclude"):  # a stage is a key of what is remembered, and no list is
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.when not in ("before", "during", "after"):
            raise ValueError(f"stage: when={self.when!r}; known are 'before', 'during' and 'after' (training)")
        if self.epochs is not None and (type(self.epochs) is not int or self.epochs < 0):
            raise ValueError(f"stage: epochs={self.epochs!r}: a whole number from 0")
        if self.when == "during" and self.epochs == 0:
            raise ValueError("stage: masks that grow during training need epochs; when='after' removes at once")
        if self.schedule is not None and self.when != "during":
            raise ValueError(f"stage: schedule= says how masks grow, when='{self.when}' removes at once: leave it out")
        if self.sparsity is not None and self.sparsity == 0:
            raise ValueError("stage: sparsity=0 removes nothing: leave the stage out, or sparsity=None to search it")
        self.plan(self.sparsity, end=2)  # refuses what does not go together
        if self.round_to is not None and (self.kind != "channels" or not self.by_shrink):
            raise ValueError(
                "stage: round_to= rounds widths of channels that are taken out at once: unit='channel', when='after' or"
                " 'before', allocation='global' or 'uniform'"
            )

    @property
    def kind(self) -> str:
        """``"channels"`` where they are taken out, else ``"masks"``."""
        return "channels" if isinstance(parse_unit(self.unit)[0], Channel) else "masks"

    @property
    def is_pattern(self) -> bool:
        """Whether an n:m pattern fixes the sparsity."""
        return isinstance(parse_unit(self.unit)[1], NM)

    @property
    def by_shrink(self) -> bool:
        """Whether channels go by ``shrink`` at once, and not by masks first."""
        return self.kind == "channels" and self.when != "during" and self.allocation in _SHRINK_SPREADS

    @property
    def searched(self) -> bool:
        """Whether the search chooses the sparsity; an n:m pattern has its own."""
        return self.sparsity is None and not self.is_pattern

    def plan(self, sparsity: float | None, *, end: int | None = None) -> Plan:
        """The plan of this stage.

        Args:
            sparsity: share of units that goes; None: as the stage says (of one that is searched any will do).
            end: last step of a gradual schedule; None: all at once.

        Returns:
            A plan.
        """
        share = self.sparsity if sparsity is None else sparsity
        gradual = self.when == "during" and end is not None and not self.is_pattern
        return Plan(
            share if self.is_pattern or share is not None else 0.5,
            criterion=self.criterion or ("l2" if self.kind == "channels" else "magnitude"),
            unit=self.unit,
            allocation=self.allocation,
            schedule=(self.schedule or "cubic") if gradual else "one_shot",
            end=end if gradual else None,
            every=max(1, (end or 0) // 50) if gradual else 1,
            targets=self.targets,
            exclude=self.exclude,
        )

    def describe(self) -> dict[str, Any]:
        """Every choice as plain JSON, functions by their names; to show it, and to tell stages apart."""
        plan = self.plan(None, end=2).describe()
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        named = {name: plan[name] for name in ("criterion", "unit", "allocation", "targets", "exclude")}
        schedule = plan["schedule"] if self.when == "during" else None
        rounding = dict(self.round_to) if isinstance(self.round_to, Mapping) else self.round_to
        return own | named | {"schedule": schedule, "round_to": rounding}


def check_stages(stages: Sequence[Stage]) -> None:
    """Make sure that stages can follow each other.

    Args:
        stages: in order.

    Raises:
        ValueError: naming the stage, and what to change.
    """
    if not stages or not all(isinstance(stage, Stage) for stage in stages):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError("stages= is a list of sc.Stage, at least one: [Stage(unit='channel'), Stage()]")
    masked: Stage | None = None
    for number, stage in enumerate(stages, start=1):
        if stage.when == "before" and number > 1:
            raise ValueError(f"stage {number}: when='before' begins with fresh weights, so it has to be the first")
        if masked is not None and stage.kind == "channels":
            raise ValueError(f"stage {number} takes channels out of a masked model: put it before the masks")
        if masked is not None and stage.when == "during":
            raise ValueError(f"stage {number}: masks grow on a model without masks; put it first, or when='after'")
        if masked is not None and stage.unit != masked.unit:
            raise ValueError(
                f"stage {number} masks unit {stage.unit!r} where an earlier one masked {masked.unit!r}: one model has "
                "masks of one unit"
            )
        masked = stage if stage.kind == "masks" else masked
