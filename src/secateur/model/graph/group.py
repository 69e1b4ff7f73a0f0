"""One coupled group, and all of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, final

import torch
from torch import Tensor

from secateur.types import KeyLayout, Member

__all__ = ["Group", "GroupKind", "Groups"]

GroupKind = Literal["channel", "head", "head_dim"]


@dataclass(frozen=True)
class Group:
    """A family of units, each a set of slices that go together; any of them can go, as long as one stays.

    Attributes:
        name: of its first producer.
        units: how many there are.
        members: the axes of tensors that the units are slices of.
        kind: ``"channel"``, ``"head"`` or ``"head_dim"``.
        exact: removing a unit computes what masking it computes.
        why_inexact: where not: what sees the difference.
        read_by_weights: the "in" members are all that reads the units.
        rescale: a mean of squares runs over the units (RMS norm), so that scales and epsilon have to follow.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    kind: GroupKind = "channel"
    exact: bool = True
    why_inexact: str = ""
    read_by_weights: bool = True
    rescale: bool = False

    @cached_property
    def owners(self) -> tuple[Tensor, ...]:
        """``Member.owner`` of each member, as a tensor."""
        made: dict[tuple[int, ...], Tensor] = {}
        return tuple(
            made[m.owner] if m.owner in made else made.setdefault(m.owner, torch.tensor(m.owner)) for m in self.members
        )

    def layout(self) -> KeyLayout:
        """The layout of the group as a target of unit ``channel``."""
        return KeyLayout((self.units,), kind="group", members=self.members)

    def __str__(self) -> str:
        made = ", ".join(m.name for m in self.members if m.part == "out")
        read = ", ".join(m.name for m in self.members if m.part == "in")
        rest = sum(m.part == "follows" for m in self.members)
        also = f", {rest} more" if rest else ""
        why = "" if self.exact else f"  [not exact: {self.why_inexact}]"
        return f"{self.name}: {self.units} {self.kind}s; made by {made}; read by {read or 'no weight'}{also}{why}"


@final
@dataclass(frozen=True)
class Groups(Mapping[str, Group]):
    """The removable groups of a model by name, and the axes that cannot lose anything.

    Attributes:
        found: name -> group.
        frozen: ``"fc.weight out"`` -> why that axis must stay.
        unknown: operators that the tracer has no rule for.
    """

    found: Mapping[str, Group]
    frozen: Mapping[str, str] = field(default_factory=dict[str, str])
    unknown: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Group:
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def layout(self) -> dict[str, KeyLayout]:
        """All groups as targets of unit ``channel``."""
        return {name: group.layout() for name, group in self.found.items()}

    def __str__(self) -> str:
        lines = [f"{len(self)} group{'' if len(self) == 1 else 's'} can be removed from:"]
        lines += [f"  {group}" for group in self.found.values()]
        if self.frozen:
            lines += ["not from:"] + [f"  {axis}: {why}" for axis, why in self.frozen.items()]
        if self.unknown:
            lines += ["operators without a rule: " + ", ".join(self.unknown)]
        return "\n".join(lines)
