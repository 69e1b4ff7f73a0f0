"""Means of activations and how many of them are zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from secateur.core.real import is_real
from secateur.model.evidence.readers import Reader, ReaderRow, Reading
from secateur.model.ranks import Ranks

__all__ = ["MOMENTS", "NEAR_ZERO"]

NEAR_ZERO = 0.05
"""Where an activation function gives no exact zeros, what is at most this share of the root mean square (over the
site's values in the first batch) counts as zero."""


@final
class _Moments(Reader):
    """``mean |a|``, ``mean a`` and ``share of [a = 0]`` of each channel, summed up in float64."""

    saved = ("_sums", "_limits")

    def __init__(self, sizes: Mapping[str, int], kinds: frozenset[str]) -> None:
        self._kinds, self._sizes, self._eps = kinds, sizes, None
        self._sums = {name: torch.zeros(4, size, dtype=torch.float64) for name, size in sizes.items()}
        self._limits: dict[tuple[str, int], float] = {}
        self._new, self._new_limits = dict(self._sums), dict(self._limits)

    def configure(self, settings: Mapping[str, Any]) -> None:
        """``eps``: the largest size that counts as zero."""
        eps = settings.get("eps") if "activation_zeros" in self._kinds else None
        if eps is not None and not (is_real(eps) and eps >= 0.0):
            raise ValueError(f"eps={eps!r}: the largest size that counts as zero, 0 or more; None for the default")
        self._eps = eps

    def begin(self, batch: Any) -> None:
        """Rows ``sum |a|, sum a, zeros, count`` of this pass."""
        self._new = {name: torch.zeros(4, size, dtype=torch.float64) for name, size in self._sizes.items()}
        self._new_limits = dict(self._limits)

    def read(self, reading: Reading) -> None:
        """Add one activation."""
        site, out, valid = reading.site, reading.values, reading.valid
        values = out if valid is None else torch.where(valid, out, torch.zeros((), dtype=out.dtype, device=out.device))
        sizes = values.abs()
        if self._eps is not None:
            zero = sizes <= self._eps
        else:
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

    def combine(self, ranks: Ranks) -> None:
        """Sums and counts; what counts as zero where nothing is exactly zero was each rank's own first batch's."""
        self._sums = ranks.sums(self._sums)

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

    def nothing(self, size: int) -> dict[str, Tensor]:
        """All zeros."""
        none = torch.zeros(size, dtype=torch.float64)
        return {kind: torch.ones_like(none) if kind == "activation_zeros" else none for kind in _MOMENTS}

    def _limit(self, reading: Reading, values: Tensor) -> float:
        """What counts as zero at a site, fixed by the first batch."""
        place = reading.site.producer, reading.number
        if place not in self._new_limits:
            there = reading.site.index >= 0
            if not bool((reading.counts()[there] > 0).any()):
                return 0.0  # an expert without tokens: the limit is fixed by the first that it gets
            squares = reading.over_rest(values.double().square()).cpu()[there]
            mean = float(squares.sum()) / max(float(reading.counts()[there].sum()), 1.0)
            self._new_limits[place] = NEAR_ZERO * mean**0.5
        return self._new_limits[place]


_MOMENTS: Mapping[str, str] = {
    "activation_mean": "per unit: mean of the activation's absolute value",
    "activation_signed": "per unit: mean of the activation",
    "activation_zeros": "per unit: share of zeros among the activations (where eps is given, of sizes up to it)",
}

MOMENTS = ReaderRow(_MOMENTS, _Moments)
