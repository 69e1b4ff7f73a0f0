"""What is read of the activations at the places where they are made. To add a statistic: a reader, and a row here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from secateur.model.graph.site import Site

__all__ = ["NEAR_ZERO", "READERS", "Reader", "ReaderRow", "Reading"]

NEAR_ZERO = 0.05
"""Where an activation function gives no exact zeros, what is at most this share of the root mean square (over the
site's values in the first batch) counts as zero."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One activation, as an operator made it.

    Attributes:
        site: whose it is, and along which axes its channels lie.
        number: of this site among those of its producer in this pass.
        values: the operator's output, of any shape; it may be overwritten later in the pass.
        valid: False at padding, broadcastable to ``values``; None where all counts.
    """

    site: Site
    number: int
    values: Tensor
    valid: Tensor | None

    def over_rest(self, values: Tensor) -> Tensor:
        """Sums over all axes but those of channels, float64 ``[places]``."""
        rest = [axis for axis in range(values.dim()) if axis not in self.site.axes]
        return (values.sum(rest, dtype=torch.float64) if rest else values.double()).reshape(-1)

    def counts(self) -> Tensor:
        """How many values there are at each place ``[places]``; padding lies beside the axes of channels."""
        places = self.site.index.numel()
        each = self.values.numel() / places
        if self.valid is not None:
            each *= float(self.valid.double().mean())
        return torch.full((places,), float(round(each)), dtype=torch.float64)


class Reader(ABC):
    """Sums something up, pass by pass: what one pass read counts when ``commit`` is called behind it."""

    @abstractmethod
    def begin(self, batch: Any) -> None:
        """A pass begins; what an uncommitted one before it read is forgotten."""

    @abstractmethod
    def read(self, reading: Reading) -> None:
        """One activation of the pass."""

    @abstractmethod
    def commit(self) -> None:
        """The pass counts."""

    @abstractmethod
    def seen(self) -> frozenset[str]:
        """The producers all of whose channels were read."""

    @abstractmethod
    def result(self) -> dict[str, dict[str, Tensor]]:
        """Kind -> producer -> tensor, of those that were seen."""


@dataclass(frozen=True, slots=True)
class ReaderRow:
    """A row of the table of readers: ``make(channels of each producer, wanted kinds) -> Reader``."""

    kinds: Mapping[str, str]
    make: Callable[[Mapping[str, int], frozenset[str]], Reader]


@final
class _Moments(Reader):
    """``mean |a|``, ``mean a`` and ``share of [a = 0]`` of each channel, summed up in float64."""

    def __init__(self, sizes: Mapping[str, int], kinds: frozenset[str]) -> None:
        self._kinds, self._sizes = kinds, sizes
        self._sums = {name: torch.zeros(4, size, dtype=torch.float64) for name, size in sizes.items()}
        self._limits: dict[tuple[str, int], float] = {}
        self._new, self._new_limits = dict(self._sums), dict(self._limits)

    def begin(self, batch: Any) -> None:
        """Rows ``sum |a|, sum a, zeros, count`` of this pass."""
        self._new = {name: torch.zeros(4, size, dtype=torch.float64) for name, size in self._sizes.items()}
        self._new_limits = dict(self._limits)

    def read(self, reading: Reading) -> None:
        """Add one activation."""
        site, out, valid = reading.site, reading.values, reading.valid
        values = out if valid is None else torch.where(valid, out, torch.zeros((), dtype=out.dtype, device=out.device))
        sizes = values.abs()
        zero = values == 0 if site.exact else sizes <= self._limit(reading, values)
        zero = zero if valid is None else zero & valid
        rows = [reading.over_rest(part).cpu() for part in (sizes, values, zero)]
        there = site.index >= 0
        self._new[site.producer].index_add_(1, site.index[there], torch.stack([*rows, reading.counts()])[:, there])

    def commit(self) -> None:
        """Add the pass."""
        self._limits = self._new_limits
        for name, sums in self._new.items():
            self._sums[name] += sums

    def seen(self) -> frozenset[str]:
        """Producers whose channels all have a count."""
        return frozenset(name for name, total in self._sums.items() if bool((total[3] > 0).all()))

    def result(self) -> dict[str, dict[str, Tensor]]:
        """Means over all values."""
        rows = dict(zip(_MOMENTS, range(3), strict=True))
        return {
            kind: {name: self._sums[name][rows[kind]] / self._sums[name][3] for name in self.seen()}
            for kind in _MOMENTS
            if kind in self._kinds
        }

    def _limit(self, reading: Reading, values: Tensor) -> float:
        """What counts as zero at a site, fixed by the first batch."""
        place = reading.site.producer, reading.number
        if place not in self._new_limits:
            there = reading.site.index >= 0
            squares = reading.over_rest(values.double().square()).cpu()[there]
            mean = float(squares.sum()) / max(float(reading.counts()[there].sum()), 1.0)
            self._new_limits[place] = NEAR_ZERO * mean**0.5
        return self._new_limits[place]


_MOMENTS: Mapping[str, str] = {
    "activation_mean": "per unit: mean of the activation's absolute value",
    "activation_signed": "per unit: mean of the activation",
    "activation_zeros": "per unit: share of zeros among the activations",
}

READERS: tuple[ReaderRow, ...] = (ReaderRow(_MOMENTS, _Moments),)
