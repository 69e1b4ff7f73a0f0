"""Unit gates: ones that multiply a layer's output channels, so that their gradients measure whole units.

A gate stands after the batch norm that reads the layer's output directly, else at the layer's output
(Molchanov et al. 2019, arXiv 1906.10771, place it after the batch norm: before it a train-mode batch
norm would divide the gate out).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

from torch import Tensor

from secateur.model.evidence.gate_hooks import GateHooks, stands
from secateur.model.evidence.gate_places import gate_layout
from secateur.model.evidence.passes import Found, Observer, Pass
from secateur.model.evidence.source import Request
from secateur.model.ranks import Ranks

__all__ = ["GATE_KINDS", "GateGradients"]

GATE_KINDS: Mapping[str, str] = {"gate_grad_sq": "per unit: mean over batches of the squared gradient of a gate"}


@final
class GateGradients(Observer):
    """Gates at the outputs of layers, through all passes; squares of their gradients, batch by batch, in float64."""

    needs_gradients = True

    def __init__(self, request: Request) -> None:
        self._root, self._layout = request.root, gate_layout(request.root, request.layout)
        self._hooks = GateHooks()
        self._squares: dict[str, Tensor] = {}
        self._count = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The gates go when the passes are over."""
        with self._hooks.installed():
            yield

    def prepare(self, one: Pass) -> None:
        """Find the places by the first batch, and put gates there."""
        if not self._hooks.placed:
            self._hooks.place(stands(self._root, self._layout, one.forward))

    @contextmanager
    def around(self, one: Pass) -> Iterator[None]:
        """New gates."""
        self._hooks.begin()
        yield

    def variables(self) -> Mapping[str, Tensor]:
        """The gates."""
        return self._hooks.gates()

    def take(self, gradients: Mapping[str, Tensor]) -> None:
        """Add one batch."""
        self._count += 1
        for name, gradient in gradients.items():
            self._squares[name] = self._squares.get(name, 0) + gradient.double().square()

    def combine(self, ranks: Ranks) -> None:
        """Sums and the count of batches."""
        self._squares, self._count = ranks.sums(self._squares), ranks.total(self._count)

    def result(self) -> Found:
        """Means over the batches."""
        return {"gate_grad_sq": {name: total / self._count for name, total in self._squares.items()}}
