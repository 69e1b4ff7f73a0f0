"""One region as it runs: checked inputs, a program per number of samples, dense where that is faster."""

from __future__ import annotations

import math
import threading
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.native.loading import PLAIN
from secateur.runtime.choose import Chosen, choose
from secateur.runtime.geometry import is_image
from secateur.runtime.graph import Graph, reference
from secateur.runtime.program import lanes_of

__all__ = ["RegionModule", "size_class"]

Given = tuple[int, dict[str, str]]


@final
class RegionModule(nn.Module):
    """A graph of the runtime in the place of the operators that it came from.

    Args:
        graph: what to compute.
        leads: axes before those of a sample, per input.
        threads: that a program may use.
    """

    def __init__(self, graph: Graph, leads: tuple[int, ...], threads: int = 1) -> None:
        super().__init__()
        self.graph, self.leads, self.threads = graph, leads, threads
        self.chosen: dict[int, Chosen] = {}  # size class -> what was measured
        self.given: dict[int, Given] = {}  # size class -> lanes and layouts that are known from before
        self._lock = threading.Lock()
        self._first = torch.Size(graph.shapes[graph.inputs[0]])
        alone = len(graph.inputs) == len(graph.outputs) == 1 and leads[0] == 1
        self._bare = 1 + len(self._first) if alone else None  # axes of a batch that needs no reshaping

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One tensor per output of the region; a single one bare."""
        if self._bare is not None and len(inputs) == 1:
            x = inputs[0]
            # The way of small networks: one matrix in, one out.
            if (
                x.ndim == self._bare
                and type(x) in PLAIN
                and x.dtype is torch.float32
                and x.is_cpu
                and x.shape[1:] == self._first
                and x.is_contiguous()
                and not x.requires_grad
            ):
                chosen = self.chosen.get(size_class(x.shape[0]))
                if chosen is not None and chosen.wins:
                    return chosen.program.run_one(x)
        return self._run(inputs)

    def _run(self, inputs: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        lead = inputs[0].shape[: self.leads[0]]
        samples = math.prod(lead)
        taken = [self._checked(i, x, samples) for i, x in enumerate(inputs)]
        chosen = self.chosen.get(size_class(samples))
        if chosen is None:
            chosen = self.decide(taken)
        if chosen.wins:
            outputs = chosen.program.run(taken)
        else:
            with torch.no_grad():
                outputs = reference(self.graph, taken)
        shaped = [
            y if len(lead) == 1 else y.view(*lead, *self.graph.shapes[name])
            for y, name in zip(outputs, self.graph.outputs, strict=True)
        ]
        return shaped[0] if len(shaped) == 1 else tuple(shaped)

    def decide(self, inputs: list[Tensor]) -> Chosen:
        """Measure for as many samples as these inputs have; the answer serves all calls of this size class."""
        size = size_class(len(inputs[0]))
        with self._lock, torch.no_grad():
            if size not in self.chosen:
                some = [_some(x) for x in inputs]
                if size in self.given:
                    lanes, layouts = self.given[size]
                    self.chosen[size] = choose(self.graph, some, lanes, layouts, self.threads)
                else:
                    found = [
                        choose(self.graph, some, lanes, threads=self.threads) for lanes in self._widths(len(some[0]))
                    ]
                    self.chosen[size] = min(found, key=lambda chosen: chosen.us)
            return self.chosen[size]

    def _widths(self, samples: int) -> tuple[int, ...]:
        """Panels to try: images go one by one, and so may a few samples."""
        if any(is_image(self.graph, value) for value in self.graph.shapes):
            return (1,)
        return (1, 16) if 1 < samples <= 8 else (lanes_of(samples),)

    def _checked(self, place: int, x: Tensor, samples: int) -> Tensor:
        """As ``[samples, *shape]``, contiguous."""
        name = self.graph.inputs[place]
        shape = self.graph.shapes[name]
        lead = self.leads[place]
        plain = type(x) in PLAIN and x.dtype is torch.float32 and x.is_cpu and x.layout is torch.strided
        if not plain or x.shape[lead:] != shape or math.prod(x.shape[:lead]) != samples:
            raise ValueError(
                f"input {name!r} of a packed model: expected dense float32 of shape [*, {', '.join(map(str, shape))}] "
                f"on the CPU with {samples} samples, got {x.dtype} of shape {tuple(x.shape)} on {x.device}"
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"input {name!r} requires gradients, and packed weights have none: call under torch.no_grad()"
            )
        return x.contiguous().view(samples, *shape)

    def __getstate__(self) -> dict[str, Any]:
        """Programs are of this process; the layouts that they were built with go along."""
        state = self.__dict__.copy()
        state["given"] = self.given | {
            size: (chosen.program.lanes, dict(chosen.layouts)) for size, chosen in self.chosen.items()
        }
        state["chosen"] = {}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()


def size_class(samples: int) -> int:
    """Calls of like sizes share a measurement: up to 1, 2, 4, 8, 16, 32, 64, or more.

    Example:
        >>> [size_class(n) for n in (1, 3, 16, 33, 65, 1000)]
        [1, 4, 16, 64, 128, 128]
    """
    return min(1 << max(samples - 1, 0).bit_length(), 128)


def _some(x: Tensor) -> Tensor:
    """Samples to measure with: those of the call, at most 256, and one where there is none."""
    return x[:256] if len(x) else x.new_zeros(1, *x.shape[1:])
