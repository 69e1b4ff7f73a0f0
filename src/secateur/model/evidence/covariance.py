"""Covariances of the channels of a layer, over examples and positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor

from secateur.model.evidence.readers import Reader, ReaderRow, Reading
from secateur.model.ranks import Ranks

__all__ = ["COVARIANCE", "CrossSums", "by_unit"]

_AT_ONCE = 2**22
"""Numbers that are turned to float64 at a time."""


@final
class CrossSums:
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

    def mean(self) -> Tensor:
        """Of each channel."""
        return self.first + self.sums / self.count

    def state(self) -> tuple[Tensor, int, Tensor, Tensor]:
        """For a checkpoint."""
        return self.first.clone(), self.count, self.sums.clone(), self.products.clone()

    @classmethod
    def of_state(cls, state: tuple[Tensor, int, Tensor, Tensor]) -> CrossSums:
        """The inverse of ``state``."""
        made = cls(state[0])
        made.count, made.sums, made.products = state[1], state[2].clone(), state[3].clone()
        return made

    def moved(self, first: Tensor) -> CrossSums:
        """The same sums of values that count from other ones."""
        shift = self.first - first.to(self.first)
        made = CrossSums(first.to(self.first))
        made.count, made.sums = self.count, self.sums + self.count * shift
        cross = torch.outer(self.sums, shift)
        made.products = self.products + cross + cross.t() + self.count * torch.outer(shift, shift)
        return made

    def covariance(self) -> Tensor:
        """Of the population ``[channels, channels]``."""
        mean = self.sums / self.count
        return self.products / self.count - torch.outer(mean, mean)


def by_unit(rows: Tensor, owner: Tensor, label: str) -> tuple[Tensor, Tensor]:
    """Values side by side for the units that they belong to.

    Args:
        rows: ``[positions, places]``.
        owner: unit of each place, -1 for none ``[places]``; units with several places have those as further positions.
        label: for the message.

    Returns:
        The units in ascending order ``[units]``, and ``[positions, units]``.

    Raises:
        ValueError: for units with different numbers of places.
    """
    order = owner.argsort(stable=True)
    order = order[owner[order] >= 0]
    units, counts = torch.unique_consecutive(owner[order], return_counts=True)
    if bool((counts != counts[0]).any()):
        raise ValueError(
            f"the units of {label!r} have different numbers of values, so they have no correlation; exclude it"
        )
    own = rows[:, order.to(rows.device)].reshape(len(rows), len(units), int(counts[0]))
    return units, own.transpose(1, 2).flatten(0, 1)


@final
class _Covariance(Reader):
    """Memory is twice the square of a layer's channels, for each layer, and one block of values."""

    def __init__(self, sizes: Mapping[str, int], kinds: frozenset[str]) -> None:
        self._sizes = sizes
        self._sums: dict[str, dict[tuple[int, ...], CrossSums]] = {name: {} for name in sizes}
        self._new: dict[tuple[str, tuple[int, ...]], CrossSums] = {}

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
        channels, own = by_unit(rows, site.index, site.producer)
        at = site.producer, tuple(channels.tolist())
        if at not in self._new:
            known = self._sums[at[0]].get(at[1])
            self._new[at] = CrossSums(own[0] if known is None else known.first)
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

    def combine(self, ranks: Ranks) -> None:
        """All count from the values that the first rank counts from."""
        firsts: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        for own in ranks.gathered(
            {(name, at): sums.first.cpu() for name, parts in self._sums.items() for at, sums in parts.items()}
        ):
            firsts = {**own, **firsts}
        for (name, at), first in firsts.items():  # in the same order on every rank
            known = self._sums[name].get(at)
            mine = CrossSums(first) if known is None else known.moved(first)
            mine.count = ranks.total(mine.count)
            added = ranks.sums({"sums": mine.sums, "products": mine.products})
            mine.sums, mine.products = added["sums"], added["products"]
            self._sums[name][at] = mine

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

    def state_dict(self) -> dict[str, Any]:
        """Of every set of channels that are read together."""
        return {n: [(list(at), sums.state()) for at, sums in parts.items()] for n, parts in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._sums = {n: {tuple(at): CrossSums.of_state(sums) for at, sums in parts} for n, parts in state.items()}

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
