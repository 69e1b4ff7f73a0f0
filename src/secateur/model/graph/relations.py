"""What the trace found out about ids: which live and die together, and which must stay.

Relations are collected first and resolved later, when the unit of removal is known: a table of ids such as
(heads, head width) can lose whole rows or whole columns, and only the unit says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.model.graph.planes import CONSTANT, FIRST_ID, FROZEN, Plane

__all__ = ["Axis", "Event", "Ids", "Link", "Relations", "Table"]

Ids: TypeAlias = NDArray[np.int64]
Axis: TypeAlias = tuple[str, int]
"""A tensor's name and one of its axes."""
Use: TypeAlias = Literal["out", "in", "direction"]


@dataclass(frozen=True, slots=True)
class Link:
    """``one[k]`` can go only together with all of the ``many`` that stand beside it."""

    one: Ids
    many: Ids


@dataclass(slots=True)
class Table:
    """Ids of a tensor that vary along several axes: what goes must be whole slices, so that a tensor is left.

    Attributes:
        ids: one id per place.
        pinned: axes of ``ids`` whose length cannot change (the parts of a split, the steps of a slice).
        where: which operator made it.
    """

    ids: Ids
    where: str
    pinned: set[int] = field(default_factory=set[int])


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to ids, and why."""

    ids: Ids
    reason: str


@dataclass(slots=True)
class Relations:
    """All that a trace collects.

    Attributes:
        slots: a tensor's axis -> (first id, size); the ids of its positions follow each other.
        uses: how contractions use an axis.
        heads: (head ids, ids of its row) of products of two activations.
        consumed: ids that something reads.
        met: ids that something without weights reads.
        squares: ids over which a mean runs; exact where an RMS norm can be rescaled.
        statistics: ``[groups, channels of a group]`` over which group norms take their statistics.
        writes: the forward writes into a parameter.
        original: the line at which the forward of a copy runs layers of the model itself, or nothing.
        starts: the first ids of all slots, for those that look them up.
    """

    count: int = FIRST_ID
    slots: dict[Axis, tuple[int, int]] = field(default_factory=dict[Axis, tuple[int, int]])
    uses: dict[Axis, set[Use]] = field(default_factory=dict[Axis, set[Use]])
    pairs: list[Ids] = field(default_factory=list[Ids])
    links: list[Link] = field(default_factory=list[Link])
    tables: dict[bytes, Table] = field(default_factory=dict[bytes, Table])
    frozen: list[Event] = field(default_factory=list[Event])
    inexact: list[Event] = field(default_factory=list[Event])
    consumed: list[Ids] = field(default_factory=list[Ids])
    met: list[Ids] = field(default_factory=list[Ids])
    heads: list[Link] = field(default_factory=list[Link])
    squares: list[Ids] = field(default_factory=list[Ids])
    statistics: list[Ids] = field(default_factory=list[Ids])
    unknown: list[str] = field(default_factory=list[str])
    branches: list[str] = field(default_factory=list[str])
    writes: bool = False
    original: str = ""
    starts: Ids = field(default_factory=lambda: np.zeros(0, np.int64))

    def new_ids(self, number: int) -> Tensor:
        """Fresh ids."""
        first = self.count
        self.count += number
        return torch.arange(first, first + number)

    def slot(self, name: str, dim: int, size: int) -> Tensor:
        """The ids of the positions along an axis of a parameter or buffer."""
        if (name, dim) not in self.slots:
            self.slots[name, dim] = (self.count, size)
            self.count += size
        first, _ = self.slots[name, dim]
        return torch.arange(first, first + size)

    def unite(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Elementwise: these live and die together. Constants couple nothing, frozen elements freeze."""
        pairs = _pairs(a, b)
        pairs = pairs[:, (pairs != CONSTANT).all(0) & (pairs[0] != pairs[1])]
        stuck = (pairs == FROZEN).any(0)
        if stuck.any():
            self.freeze(torch.from_numpy(pairs[:, stuck].reshape(-1)), reason)
        if not stuck.all():
            self.pairs.append(pairs[:, ~stuck])

    def link(self, one: Tensor, many: Tensor) -> None:
        """Elementwise: ``one`` goes only if all of its ``many`` go."""
        pairs = _pairs(one, many)
        pairs = pairs[:, (pairs[0] >= FIRST_ID)]
        if pairs.size:
            self.links.append(Link(pairs[0], pairs[1]))

    def freeze(self, ids: Tensor, reason: str) -> None:
        """These places must stay."""
        self._event(self.frozen, ids, reason)

    def blur(self, ids: Tensor, reason: str) -> None:
        """Removing one of these changes the values of others."""
        self._event(self.inexact, ids, reason)

    def head(self, one: Tensor, many: Tensor) -> None:
        """Attention: ``one`` head id for a row of ``many``."""
        self.heads.append(Link(one.reshape(-1).numpy(), many.reshape(-1).numpy()))

    def mean_square(self, ids: Tensor) -> None:
        """A mean runs over these."""
        self.squares.append(np.unique(ids.reshape(-1).numpy()))

    def normalise(self, rows: Tensor) -> None:
        """A group norm takes its statistics over each row."""
        self.statistics.append(rows.numpy())

    def consume(self, ids: Tensor, *, weights: bool) -> None:
        """These are read: summed with weights, or with each other, where a masked one adds nothing."""
        present = np.unique(ids.reshape(-1).numpy())
        self.consumed.append(present)
        if not weights:
            self.met.append(present)

    def table(self, plane: Plane, where: str, *, pin: Sequence[int] = ()) -> None:
        """Record a plane whose ids vary along several axes; ``pin`` names axes of it that keep their length."""
        axes = sorted(plane.axes)
        if len(axes) < 2:
            if any(axis in plane.axes for axis in pin):
                self.freeze(plane.ids, f"its place is fixed by {where}")
            return
        ids = np.ascontiguousarray(plane.ids.squeeze().numpy())
        key = ids.tobytes() + bytes(str(ids.shape), "ascii")
        found = self.tables.setdefault(key, Table(ids, where))
        found.pinned |= {axes.index(axis) for axis in pin if axis in plane.axes}

    def use(self, ids: Tensor, use: Use) -> None:
        """A contraction uses the axes that these slots belong to."""
        present = np.unique(ids.reshape(-1).numpy())
        starts = self._first_ids()
        places = np.unique(np.searchsorted(starts, present[present >= FIRST_ID], side="right") - 1)
        axes = list(self.slots.items())
        for place in places[places >= 0]:
            axis, (first, size) = axes[place]
            if ((present >= first) & (present < first + size)).any():
                self.uses.setdefault(axis, set()).add(use)

    def _first_ids(self) -> Ids:
        """Where the ids of each axis begin; there are ever more axes, so that their number tells whether it is new."""
        if len(self.starts) != len(self.slots):
            self.starts = np.fromiter((first for first, _ in self.slots.values()), np.int64, len(self.slots))
        return self.starts

    def _event(self, events: list[Event], ids: Tensor, reason: str) -> None:
        real = np.unique(ids.reshape(-1).numpy())
        real = real[real >= FIRST_ID]
        if real.size:
            events.append(Event(real, reason))


_FEW = 1 << 16
"""So many pairs are kept as they come: to sort them takes longer than to read some of them twice."""


def _pairs(a: Tensor, b: Tensor) -> Ids:
    """What meets elementwise ``[2, pairs]``; of many pairs each once."""
    a, b = torch.broadcast_tensors(a, b)
    pairs = torch.stack([a.reshape(-1), b.reshape(-1)]).numpy()
    return pairs if pairs.shape[1] <= _FEW else np.unique(pairs, axis=1)
