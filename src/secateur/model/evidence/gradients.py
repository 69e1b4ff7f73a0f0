"""Gradients of weights: their means, absolute means and mean squares over batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

from torch import Tensor

from secateur.core.canonical import wide
from secateur.model.evidence.passes import Found, Observer, Pass
from secateur.model.evidence.source import Request
from secateur.model.names import find_parameter
from secateur.model.ranks import Ranks

__all__ = ["WEIGHT_GRADIENTS", "WeightGradients"]

WEIGHT_GRADIENTS: Mapping[str, str] = {
    "grad": "mean over batches of the gradient",
    "grad_abs": "mean over batches of the gradient's absolute value",
    "grad_sq": "mean over batches of the squared gradient",
}

_TURN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "grad": lambda g: g,
    "grad_abs": lambda g: g.abs(),
    "grad_sq": lambda g: g.square(),
}


@final
class WeightGradients(Observer):
    """Sums over batches, float32 at least: squares of half-precision gradients underflow."""

    needs_gradients = True

    def __init__(self, request: Request) -> None:
        self._root, self._names = request.root, tuple(request.weights)
        self._sums: Found = {kind: {} for kind in request.kinds}
        self._count = 0
        self._weights: dict[str, Tensor] = {}

    def prepare(self, one: Pass) -> None:
        """Look the weights up: each time, as sharding replaces them, and before the forward pass.

        Behind it the modules of FSDP2 hold gathered copies, whose gradients are not reduced over the ranks.
        """
        self._weights = {name: find_parameter(self._root, name) for name in self._names}

    def variables(self) -> Mapping[str, Tensor]:
        """The weights."""
        return self._weights

    def take(self, gradients: Mapping[str, Tensor]) -> None:
        """Add one batch."""
        self._count += 1
        for kind, totals in self._sums.items():
            for name, gradient in gradients.items():
                totals[name] = totals.get(name, 0) + _TURN[kind](wide(gradient))

    def combine(self, ranks: Ranks) -> None:
        """Sums and the count of batches."""
        self._sums = {kind: ranks.sums(totals) for kind, totals in self._sums.items()}
        self._count = ranks.total(self._count)

    def result(self) -> Found:
        """Means over the batches."""
        return {kind: {name: total / self._count for name, total in sums.items()} for kind, sums in self._sums.items()}
