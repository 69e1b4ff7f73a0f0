"""Reading how much the kept units of one layer depend on activations below, by a backward pass behind each batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from secateur.model.evidence.example_axis import count_examples
from secateur.model.evidence.readers import Reader, Reading
from secateur.model.ranks import Ranks

__all__ = ["Dependency", "LastRead"]


@final
class LastRead(Reader):
    """Which layer's activation comes last."""

    def __init__(self) -> None:
        self.name = ""

    def begin(self, batch: Any) -> None:
        """Nothing is summed up."""

    def read(self, reading: Reading) -> None:
        """The latest so far."""
        self.name = reading.site.producer

    def commit(self) -> None:
        """Nothing is summed up."""

    def combine(self, ranks: Ranks) -> None:
        """All ranks run the same model; the first one's word stands."""
        self.name = ranks.gathered(self.name)[0]

    def seen(self) -> frozenset[str]:
        """The one."""
        return frozenset({self.name})

    def result(self) -> dict[str, dict[str, Tensor]]:
        """No evidence."""
        return {}

    def nothing(self, size: int) -> dict[str, Tensor]:
        """No evidence."""
        return {}


@final
class Dependency(Reader):
    """``mean_n |sum over positions of a dS_n/da|`` of each channel, ``S_n`` the sum of what is kept at the top.

    The output of an operator has its history when the pass is over, so the backward pass runs in ``commit``. Positions
    of padding count neither at the top nor below.

    Args:
        kind: of the evidence.
        sizes: layer -> channels.
        top: the layer.
        kept: bool, its channels that stay.
        pool: ``"max"`` or ``"mean"`` over positions of the top.

    Attributes:
        reached: layers that the top depends on at all.
    """

    by_example = True

    def __init__(self, kind: str, sizes: Mapping[str, int], top: str, kept: Tensor, pool: str) -> None:
        self._kind, self._sizes, self._top, self._kept, self._pool = kind, sizes, top, kept.cpu(), pool
        self._sums: dict[str, Tensor] = {}
        self._examples = self._count = 0
        self._readings: list[tuple[Reading, float]] = []
        self.reached = set[str]()

    def begin(self, batch: Any) -> None:
        """Hold what the pass makes."""
        self._readings, self._count = [], count_examples(batch)

    def read(self, reading: Reading) -> None:
        """Hold the activation, and what it sums up to now."""
        if reading.values.numel():  # an expert without tokens has none
            self._readings.append((reading, _sum(reading.values)))

    def commit(self) -> None:
        """Differentiate, and add the pass."""
        for reading, before in self._readings:
            if not math.isnan(before) and _sum(reading.values) != before:
                raise ValueError(
                    f"the activation of {reading.site} is overwritten in place later in the pass, so its gradient is "
                    "not to be had; write that line out of place while scoring (x = x + y), or take lda or taylor_2017"
                )
        goal = self._goal()
        made = list({id(reading.made): reading.made for reading, _ in self._readings if reading.made.grad_fn}.values())
        slopes = torch.autograd.grad(goal, made, allow_unused=True)
        by_tensor = {id(tensor): slope for tensor, slope in zip(made, slopes, strict=True)}
        new: dict[str, Tensor] = {}
        for reading, _ in self._readings:
            name, slope = reading.site.producer, by_tensor.get(id(reading.made))
            rows = new.setdefault(name, torch.zeros(self._count, self._sizes[name], dtype=torch.float64))
            if slope is not None:
                self.reached.add(name)
                there = reading.site.index >= 0
                own = self._over_positions(reading, reading.values.double() * slope.double())
                rows.index_add_(1, reading.site.index[there], own.cpu()[:, there])
        for name, rows in new.items():
            self._sums[name] = self._sums.get(name, 0) + rows.abs().sum(0)
        self._examples += self._count
        self._readings = []

    def combine(self, ranks: Ranks) -> None:
        """Sums and examples add up."""
        self._sums, self._examples = ranks.sums(self._sums), ranks.total(self._examples)
        self.reached = {name for reached in ranks.gathered(self.reached) for name in reached}

    def seen(self) -> frozenset[str]:
        """Layers that ran."""
        return frozenset(self._sums)

    def result(self) -> dict[str, dict[str, Tensor]]:
        """Means over examples."""
        return {self._kind: {name: total / self._examples for name, total in self._sums.items()}}

    def nothing(self, size: int) -> dict[str, Tensor]:
        """Nothing depends on what never fires."""
        return {self._kind: torch.zeros(size, dtype=torch.float64)}

    def _goal(self) -> Tensor:
        """What is kept at the top, of all examples: they do not mix, so the gradient of each is its own."""
        parts = [self._pooled(reading) for reading, _ in self._readings if reading.site.producer == self._top]
        goal = torch.stack(parts).sum() if parts else torch.zeros(())
        if goal.grad_fn is None:
            how = "has no gradient (no_grad or re-entrant checkpointing in its forward?)" if parts else "did not run"
            raise ValueError(
                f"the top layer {self._top!r} {how} in a pass over the data, so nothing is known of what it depends on"
            )
        return goal

    def _pooled(self, reading: Reading) -> Tensor:
        values, valid = self._rows(reading, reading.made), self._valid(reading)
        if self._pool == "max":
            pooled = (values if valid is None else values.masked_fill(~valid, -torch.inf)).amax(1)
        elif valid is None:
            pooled = values.mean(1)
        else:
            pooled = values.masked_fill(~valid, 0.0).sum(1) / valid.sum(1).clamp(min=1)
        index = reading.site.index
        chosen = (index >= 0) & self._kept[index.clamp(min=0)]
        return pooled[:, chosen.to(pooled.device)].sum()

    def _over_positions(self, reading: Reading, products: Tensor) -> Tensor:
        rows, valid = self._rows(reading, products), self._valid(reading)
        return (rows if valid is None else rows.masked_fill(~valid, 0.0)).sum(1)

    def _rows(self, reading: Reading, values: Tensor) -> Tensor:
        """``[examples, positions, places]``."""
        return reading.by_example(values, self._count).flatten(1, -2)

    def _valid(self, reading: Reading) -> Tensor | None:
        return None if reading.valid is None else self._rows(reading, reading.valid)


def _sum(values: Tensor) -> float:
    return float(values.detach().sum(dtype=torch.float64))
