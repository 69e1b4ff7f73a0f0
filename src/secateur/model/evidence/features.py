"""One number per channel and example: means and maxima over positions, with the examples' labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from secateur.model.evidence.example_axis import count_examples
from secateur.model.evidence.readers import Reader, ReaderRow, Reading
from secateur.model.ranks import Ranks

__all__ = ["FEATURES"]

_POOLED, _MAX, _LABELS = "activation_pooled", "activation_max", "labels"


@final
class _Features(Reader):
    """Means ``[channels, examples]``, maxima, and labels ``[examples]``; tokens of padding are left out of both.

    Several calls of a layer count together. Memory is two numbers per channel and example.
    """

    by_example = True
    saved = ("_parts", "_labels")

    def __init__(self, sizes: Mapping[str, int], kinds: frozenset[str]) -> None:
        self._kinds, self._sizes = kinds, sizes
        self._parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in sizes}
        self._labels: list[Tensor] = []
        self._new: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._count = 0
        self._own: Tensor | None = None

    def begin(self, batch: Any) -> None:
        """Sums, counts and maxima of this batch's examples."""
        self._new, self._count = {}, count_examples(batch)
        self._own = _labels_of(batch, self._count) if _LABELS in self._kinds else None

    def read(self, reading: Reading) -> None:
        """Add one activation."""
        if not reading.values.numel():  # an expert without tokens
            return
        site, size = reading.site, self._count
        values = reading.by_example(reading.values, size).flatten(1, -2)
        valid = None if reading.valid is None else reading.by_example(reading.valid, size).flatten(1, -2)
        there = site.index >= 0
        index = site.index[there]
        low = torch.full((), -torch.inf, dtype=values.dtype, device=values.device)
        kept = values if valid is None else torch.where(valid, values, torch.zeros_like(low))
        most = (values if valid is None else torch.where(valid, values, low)).amax(1)
        each = torch.full(most.shape, float(values.shape[1])) if valid is None else valid.sum(1)
        sums, counts, maxima = self._rows_of(site.producer)
        sums.index_add_(1, index, kept.sum(1, dtype=torch.float64).cpu()[:, there])
        counts.index_add_(1, index, each.double().cpu()[:, there])
        maxima.scatter_reduce_(1, index.expand(size, -1), most.double().cpu()[:, there], "amax")

    def commit(self) -> None:
        """Add the pass."""
        for name, part in self._new.items():
            self._parts[name].append(part)
        if self._own is not None:
            self._labels.append(self._own)

    def combine(self, ranks: Ranks) -> None:
        """The examples of all ranks, one rank after the other."""
        every = ranks.gathered((self._parts, self._labels))
        self._parts = {name: [part for parts, _ in every for part in parts[name]] for name in self._parts}
        self._labels = [own for _, labels in every for own in labels]

    def seen(self) -> frozenset[str]:
        """Producers all of whose channels have a value in each example that was read."""
        return frozenset(n for n, parts in self._parts.items() if parts and all(bool((p[1] > 0).all()) for p in parts))

    def result(self) -> dict[str, dict[str, Tensor]]:
        """Channels first."""
        found: dict[str, dict[str, Tensor]] = {kind: {} for kind in (_POOLED, _MAX, _LABELS) if kind in self._kinds}
        for name in self.seen():
            sums, counts, maxima = (torch.cat(rows).t() for rows in zip(*self._parts[name], strict=True))
            made = {_POOLED: sums / counts, _MAX: maxima}
            if _LABELS in found:
                made[_LABELS] = torch.cat(self._labels)
                if len(made[_LABELS]) != sums.shape[1]:
                    raise ValueError(
                        f"{name!r} ran for {sums.shape[1]} of {len(made[_LABELS])} examples, so labels do not tell "
                        f"which are its own; exclude=[{name!r}]"
                    )
            for kind, tensors in found.items():
                tensors[name] = made[kind].contiguous()
        return found

    def nothing(self, size: int) -> dict[str, Tensor]:
        """Two examples of two classes, at which nothing fires."""
        none = torch.zeros(size, 2, dtype=torch.float64)
        return {_POOLED: none, _MAX: none, _LABELS: torch.arange(2)}

    def _rows_of(self, producer: str) -> tuple[Tensor, Tensor, Tensor]:
        """Sums, counts and maxima ``[examples, channels]`` of this pass."""
        if producer not in self._new:
            empty = torch.zeros(self._count, self._sizes[producer], dtype=torch.float64)
            self._new[producer] = empty, empty.clone(), torch.full_like(empty, -torch.inf)
        return self._new[producer]


def _labels_of(batch: Any, size: int) -> Tensor:
    given: Any = None
    if isinstance(batch, Mapping):
        given = batch.get("labels")
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:  # pyright: ignore[reportUnknownArgumentType]
        given = batch[1]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(given, Tensor) or given.shape != (size,) or given.is_floating_point():
        shape = f"of shape {tuple(given.shape)}, {given.dtype}" if isinstance(given, Tensor) else "missing"
        raise ValueError(
            f"labels are {shape}; classes are told apart by one whole number per example: give (inputs, labels) "
            f"batches with labels [{size}], or mappings with such 'labels'"
        )
    return given.detach().cpu()


FEATURES = ReaderRow(
    {
        _POOLED: "per unit and example: mean of the activation over positions",
        _MAX: "per unit and example: maximum of the activation over positions",
        _LABELS: "class of each example",
    },
    _Features,
)
