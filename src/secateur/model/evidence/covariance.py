"""Covariances of the channels of a layer, over examples and positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor

from secateur.model.evidence.readers import Reader, ReaderRow, Reading

__all__ = ["COVARIANCE"]

_AT_ONCE = 2**22
"""Numbers that are turned to float64 at a time."""


@final
class _Sums:
    """Count, sums and cross products of channels that are read together, in float64.

    Values count from those of the first position: sums of squares then lose nothing to a large mean, and a constant
    channel has exactly no variance.
    """

    def __init__(self, first: Tensor) -> None:
        self.first, self.count = first.double(), 0
        self.sums = torch.zeros_like(self.first)
        self.products = torch.zeros(first.numel(), first.numel(), dtype=torch.float64, device=first.device)

    def add(self, rows: Tensor) -> None:
        """``[positions, channels]``, block by block."""
        for block in rows.split(max(1, _AT_ONCE // rows.shape[1])):
            own = block.double() - self.first
            self.count += len(own)
            self.sums += own.sum(0)
            self.products.addmm_(own.t(), own)

    def covariance(self) -> Tensor:
        """Of the population ``[channels, channels]``."""
        mean = self.sums / self.count
        return self.products / self.count - torch.outer(mean, mean)


@final
class _Covariance(Reader):
    """Memory is twice the square of a layer's channels, for each layer, and one block of values."""

    def __init__(self, sizes: Mapping[str, int], kinds: frozenset[str]) -> None:
        self._sizes = sizes
        self._sums: dict[str, dict[tuple[int, ...], _Sums]] = {name: {} for name in sizes}
        self._new: dict[tuple[str, tuple[int, ...]], _Sums] = {}

    def begin(self, batch: Any) -> None:
        """Nothing of this pass yet."""
        self._new = {}

    def read(self, reading: Reading) -> None:
        """Add one activation."""
        site, out = reading.site, reading.values
        rest = [axis for axis in range(out.dim()) if axis not in site.axes]
        rows = out.permute(*rest, *site.axes).reshape(-1, site.index.numel())
        if reading.valid is not None:
            valid = reading.valid.expand(out.shape).permute(*rest, *site.axes).reshape(rows.shape)[:, 0]
            rows = rows[valid]
        if not len(rows):  # an expert without tokens
            return
        order = site.index.argsort(stable=True)
        order = order[site.index[order] >= 0]
        channels, counts = site.index[order].unique_consecutive(return_counts=True)
        if bool((counts != counts[0]).any()):
            raise ValueError(
                f"the channels of {site.producer!r} have different numbers of values in {site.where}, so they have no "
                f"correlation; exclude=[{site.producer!r}]"
            )
        own = rows[:, order.to(rows.device)].reshape(len(rows), len(channels), int(counts[0])).transpose(1, 2)
        own = own.flatten(0, 1)
        at = site.producer, tuple(channels.tolist())
        if at not in self._new:
            known = self._sums[at[0]].get(at[1])
            self._new[at] = _Sums(own[0] if known is None else known.first)
        self._new[at].add(own)

    def commit(self) -> None:
        """Add the pass."""
        for (name, channels), sums in self._new.items():
            known = self._sums[name].setdefault(channels, sums)
            if known is not sums:
                known.count += sums.count
                known.sums += sums.sums
                known.products += sums.products
        self._new = {}

    def seen(self) -> frozenset[str]:
        """Producers all of whose channels were read."""
        return frozenset(
            n for n, size in self._sizes.items() if {c for part in self._sums[n] for c in part} >= {*range(size)}
        )

    def result(self) -> dict[str, dict[str, Tensor]]:
        """Channels that are never read together (halves of a gate, say) have no covariance: zero."""
        return {"activation_covariance": dict(self._matrices())}

    def nothing(self, size: int) -> dict[str, Tensor]:
        """Constants."""
        return {"activation_covariance": torch.zeros(size, size, dtype=torch.float64)}

    def _matrices(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.seen():
            size, parts = self._sizes[name], self._sums[name]
            if sum(map(len, parts)) > size:
                raise ValueError(
                    f"the channels of {name!r} are read in overlapping parts, so their correlation is not one number; "
                    f"exclude=[{name!r}]"
                )
            whole = torch.zeros(size, size, dtype=torch.float64)
            for channels, sums in parts.items():
                index = torch.tensor(channels)
                whole[index[:, None], index] = sums.covariance().cpu()
            yield name, whole


COVARIANCE = ReaderRow(
    {"activation_covariance": "covariances of a layer's activations over data and positions"}, _Covariance
)
