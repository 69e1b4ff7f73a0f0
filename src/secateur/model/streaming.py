"""Evidence that is averaged while the user trains, from the gradients that the optimizer sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from secateur.model.sharding import full

__all__ = ["STREAMED_KINDS", "StreamingEvidence"]

STREAMED_KINDS = ("grad", "grad_abs", "grad_sq", "movement")
"""Evidence that needs nothing but the gradients of training."""


@final
class StreamingEvidence:
    """Running sums over optimizer steps.

    ``grad``, ``grad_abs`` and ``grad_sq`` are means over the steps since the last ``restart()``; ``movement`` is
    minus the sum of gradient times weight over all steps (Sanh et al. 2020, arXiv 2005.07683).

    Args:
        kinds: which of ``STREAMED_KINDS`` to keep; memory is one float32 tensor per kind and parameter.

    Example:
        >>> stream = StreamingEvidence(["movement"])
        >>> for w, g in (((1.0, -0.5, 0.2), (0.2, -0.1, 0.0)), ((0.9, -0.4, 0.1), (0.1, -0.3, 0.5))):
        ...     stream.observe("w", torch.tensor(w), torch.tensor(g))
        >>> [round(value, 2) for value in stream.evidence()["movement"]["w"].tolist()]
        [-0.29, -0.17, -0.05]
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self.kinds = tuple(kinds)
        unknown = [kind for kind in self.kinds if kind not in STREAMED_KINDS]
        if unknown:
            raise ValueError(f"evidence {unknown[0]!r} cannot be streamed; known: {', '.join(STREAMED_KINDS)}")
        self._sums: dict[str, dict[str, Tensor]] = {kind: {} for kind in self.kinds}
        self._steps: dict[str, int] = {}

    @torch.no_grad()
    def observe(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        """Take one step's gradient of one parameter in, before it is masked or used."""
        g = full(gradient).float()
        for kind in self.kinds:
            if kind == "movement":
                term = -g * full(weight).float()
            else:
                term = g.abs() if kind == "grad_abs" else g.square() if kind == "grad_sq" else g
            total = self._sums[kind].get(name)
            self._sums[kind][name] = term.clone() if total is None else total.add_(term)
        self._steps[name] = self._steps.get(name, 0) + 1

    def evidence(self) -> dict[str, Mapping[str, Tensor]]:
        """Kind -> name -> tensor.

        Raises:
            ValueError: if no gradient was seen yet.
        """
        if self.kinds and not self._steps:
            raise ValueError(
                f"no gradient was seen yet, so {', '.join(self.kinds)} is unknown: begin pruning after the first "
                "steps (Plan(begin=...)), or give the Pruner data= and loss="
            )
        return {
            kind: {n: t if kind == "movement" else t / self._steps[n] for n, t in totals.items()}
            for kind, totals in self._sums.items()
        }

    def restart(self) -> None:
        """Begin new means; ``movement`` goes on."""
        for kind in self.kinds:
            if kind != "movement":
                self._sums[kind].clear()
        if self.kinds != ("movement",):
            self._steps.clear()

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts, for a checkpoint."""
        sums = {kind: {name: tensor.clone() for name, tensor in totals.items()} for kind, totals in self._sums.items()}
        return {"sums": sums, "steps": dict(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._sums = {kind: {n: t.clone() for n, t in state["sums"][kind].items()} for kind in self.kinds}
        self._steps = dict(state["steps"])
