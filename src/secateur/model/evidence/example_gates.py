"""Gates per example: one forward and one backward give the gradient of every example's own gates.

With the mean of the examples' losses, ``L = sum_n L_n / N``, and nothing in the model that mixes examples,
``dL_n / dz_c = N dL / dz_nc`` for a gate ``z_nc = 1`` on channel c of example n.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.model.batches import LossFunction, forward_of, loss_of_output
from secateur.model.evidence.example_axis import count_examples, example_axes
from secateur.model.evidence.gate_hooks import GateHooks, Stand, reader_stands, stands
from secateur.model.evidence.gate_places import gate_layout
from secateur.model.evidence.passes import Found, Observer, Pass
from secateur.model.evidence.source import Request
from secateur.model.ranks import Ranks

__all__ = ["EXAMPLE_GATE_KINDS", "READER_GATE_KINDS", "ExampleGates", "ReaderGates"]

EXAMPLE_GATE_KINDS: Mapping[str, str] = {
    "gate_example_abs": "per unit: mean over examples of the absolute gradient of a gate",
    "gate_example_sq": "per unit: mean over examples of the squared gradient of a gate",
}

READER_GATE_KINDS: Mapping[str, str] = {
    "reader_gate_abs": "per coupled unit: mean over examples of the absolute gradient of a gate before what reads it",
}


@final
class _Sums:
    """Absolute and squared gradients of gates per example, in float64."""

    def __init__(self, request: Request) -> None:
        if request.source.mode == "train":
            raise ValueError(
                f"{request.kinds[0]!r} needs examples that do not see each other, and batch norms in train mode mix "
                "them: leave mode='eval'"
            )
        self._step, self._loss = request.source.step, request.source.loss
        self.hooks = GateHooks()
        self._totals: dict[str, tuple[Tensor, Tensor]] = {}
        self._count = self._now = 0
        self._by_mean = True

    def check(self, output: Any, batch: Any) -> None:
        """Whether the loss is a mean or a sum over examples, where output and labels are there to be doubled."""
        found = _doubling(output, batch, None if self._step is not None else self._loss)
        if found is None or abs(found - 1.0) < _NEAR:
            return
        if abs(found - 2.0) > _NEAR:
            raise ValueError(
                f"the loss of a batch given twice is {found:.4g} times the loss of the batch: it is neither the mean "
                "nor the sum of its examples' losses, so examples have no losses of their own. Take gate_taylor, "
                "which has one gate for the batch, or a loss such as F.cross_entropy"
            )
        self._by_mean = False

    def place(self, root: nn.Module, found: list[Stand], batch: Any) -> None:
        """Put up a gate for each example."""
        seen = {stand.label: (stand.module, stand.owner is not None) for stand in found}
        self.hooks.place(found, example_axes(batch, lambda rows: forward_of(root, rows, self._step), seen))

    def begin(self, batch: Any) -> None:
        """A pass over so many examples begins."""
        self._now = count_examples(batch)
        self.hooks.begin(self._now)

    def take(self, gradients: Mapping[str, Tensor]) -> None:
        """Add one batch."""
        self._count += self._now
        for name, gradient in gradients.items():
            own = gradient.double() * (self._now if self._by_mean else 1)
            total, squares = self._totals.get(name, (0, 0))
            self._totals[name] = total + own.abs().sum(0), squares + own.square().sum(0)

    def combine(self, ranks: Ranks) -> None:
        """Sums, and the count of examples."""
        both = ranks.sums({name: torch.stack(totals) for name, totals in self._totals.items()})
        self._totals = {name: (one[0], one[1]) for name, one in both.items()}
        self._count = ranks.total(self._count)

    def means(self, which: int) -> dict[str, Tensor]:
        """Over all examples: 0 of the absolute gradients, 1 of the squares."""
        return {name: totals[which] / self._count for name, totals in self._totals.items()}


class _Gated(Observer):
    """A gate for each example and unit; where the gates are put is each observer's own."""

    needs_gradients = True

    def __init__(self, request: Request) -> None:
        self._root, self._sums = request.root, _Sums(request)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The gates go when the passes are over."""
        with self._sums.hooks.installed():
            yield

    @contextmanager
    def around(self, one: Pass) -> Iterator[None]:
        """New gates."""
        self._sums.begin(one.batch)
        yield

    def variables(self) -> Mapping[str, Tensor]:
        """The gates."""
        return self._sums.hooks.gates()

    def take(self, gradients: Mapping[str, Tensor]) -> None:
        """Add one batch."""
        self._sums.take(gradients)

    def combine(self, ranks: Ranks) -> None:
        """Over all examples of all ranks."""
        self._sums.combine(ranks)


@final
class ExampleGates(_Gated):
    """A gate for each example at the outputs of layers, where ``GateGradients`` has one for the batch."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._kinds, self._layout = request.kinds, gate_layout(request.root, request.layout)

    def prepare(self, one: Pass) -> None:
        """Find the places by the first batch, and put gates there."""
        if self._sums.hooks.placed:
            return
        outputs: list[Any] = []
        found = stands(self._root, self._layout, lambda: outputs.append(one.forward()))
        self._sums.check(outputs[0], one.batch)
        self._sums.place(self._root, found, one.batch)

    def result(self) -> Found:
        """Means over the examples."""
        return {kind: self._sums.means(list(EXAMPLE_GATE_KINDS).index(kind)) for kind in self._kinds}


@final
class ReaderGates(_Gated):
    """A gate for each example and unit of a coupled group, before all that reads the unit: attention heads, say."""

    def __init__(self, request: Request) -> None:
        if any(key.kind != "group" for key in request.layout.values()):
            raise ValueError(
                f"{request.kinds[0]!r} is of coupled units and what reads them: take unit='channel', or heads by "
                "sc.shrink(unit='head')"
            )
        super().__init__(request)
        self._stands = reader_stands(request.root, request.layout)

    def prepare(self, one: Pass) -> None:
        """Look at the loss, and put the gates up."""
        if not self._sums.hooks.placed:
            with torch.no_grad():
                self._sums.check(one.forward(), one.batch)
            self._sums.place(self._root, self._stands, one.batch)

    def result(self) -> Found:
        """Means over the examples."""
        return {"reader_gate_abs": self._sums.means(0)}


_NEAR = 1e-2


def _doubling(output: Any, batch: Any, loss: LossFunction | None) -> float | None:
    """By which factor the loss grows when each example comes twice; None where that cannot be tried."""
    if loss is None or not isinstance(output, Tensor) or not isinstance(batch, (tuple, list)):
        return None
    pair: list[Any] = list(batch)  # pyright: ignore[reportUnknownArgumentType]
    if len(pair) != 2 or not isinstance(pair[1], Tensor) or not pair[1].dim() or not output.dim():
        return None
    if output.shape[0] != pair[1].shape[0]:
        return None
    with torch.no_grad():
        once = float(loss_of_output(output, tuple(pair), loss))
        twice = float(loss_of_output(torch.cat([output] * 2), (pair[0], torch.cat([pair[1]] * 2)), loss))
    return twice / once if abs(once) > 1e-12 else None
