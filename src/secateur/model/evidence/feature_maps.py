"""Ranks of feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.model.evidence.example_axis import count_examples
from secateur.model.evidence.readers import Reader, ReaderRow, Reading
from secateur.model.ranks import Ranks

__all__ = ["FEATURE_MAPS"]


@final
class _Ranks(Reader):
    """Mean rank over images; a channel without positions is a map of one, whose rank is 0 or 1."""

    by_example = True
    saved = ("_sums",)

    def __init__(self, sizes: Mapping[str, int], kinds: frozenset[str]) -> None:
        self._sizes = sizes
        self._sums = {name: torch.zeros(2, size, dtype=torch.float64) for name, size in sizes.items()}
        self._new = dict(self._sums)
        self._count = 0

    def begin(self, batch: Any) -> None:
        """Rows ``sum of ranks, maps`` of this pass."""
        self._new = {name: torch.zeros(2, size, dtype=torch.float64) for name, size in self._sizes.items()}
        self._count = count_examples(batch)

    def read(self, reading: Reading) -> None:
        """Rank of each map, of which the last two axes of positions are rows and columns."""
        if not reading.values.numel():  # an expert without tokens
            return
        site, values = reading.site, reading.values
        if reading.valid is not None:
            values = torch.where(reading.valid, values, torch.zeros((), dtype=values.dtype, device=values.device))
        maps = reading.by_example(values, self._count).movedim(-1, 0).flatten(1, 2)  # [places, images, positions ...]
        while maps.dim() < 4:
            maps = maps.unsqueeze(-1)
        if maps.dim() > 4:
            maps = maps.flatten(1, maps.dim() - 3)
        ranks = torch.linalg.matrix_rank(wide(maps)).double()
        there = site.index >= 0
        rows = torch.stack([ranks.sum(1), torch.full(ranks.shape[:1], float(ranks.shape[1]), device=ranks.device)])
        self._new[site.producer].index_add_(1, site.index[there], rows.double().cpu()[:, there])

    def commit(self) -> None:
        """Add the pass."""
        for name, sums in self._new.items():
            self._sums[name] += sums

    def combine(self, ranks: Ranks) -> None:
        """Sums and counts."""
        self._sums = ranks.sums(self._sums)

    def seen(self) -> frozenset[str]:
        """Producers whose channels all have a map."""
        return frozenset(name for name, total in self._sums.items() if bool((total[1] > 0).all()))

    def result(self) -> dict[str, dict[str, Tensor]]:
        """Means over maps."""
        return {"activation_rank": {name: self._sums[name][0] / self._sums[name][1] for name in self.seen()}}

    def nothing(self, size: int) -> dict[str, Tensor]:
        """Maps of zeros."""
        return {"activation_rank": torch.zeros(size, dtype=torch.float64)}


FEATURE_MAPS = ReaderRow({"activation_rank": "per unit: mean over images of the rank of its feature map"}, _Ranks)
