"""One region as it runs: checked inputs, a program per number of samples, dense where that is faster."""

from __future__ import annotations

import math
import threading
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.native.gates import MOST_KEPT, SMALL, gate_for
from secateur.native.loading import PLAIN
from secateur.runtime.cache import Cache, Entry, machine_key
from secateur.runtime.choose import Chosen, choose, pack_layer
from secateur.runtime.geometry import is_image
from secateur.runtime.graph import Graph, reference
from secateur.runtime.program import lanes_of
from secateur.runtime.remember import Packing, entry_of, rebuild, structure

__all__ = ["RegionModule", "size_class"]


_BLOCK = 16  # images that lie side by side


@final
class RegionModule(nn.Module):
    """A graph of the runtime in the place of the operators that it came from.

    Args:
        graph: what to compute.
        leads: axes before those of a sample, per input.
        threads: that a program may use.
        cached: look choices up in the machine's cache, and put them there.
        dtype: bfloat16 or int8 lets linear layers run in it where that is faster.
    """

    packing: Packing
    """Packs a layer's weight; a file may bring it packed."""

    def __init__(
        self,
        graph: Graph,
        leads: tuple[int, ...],
        threads: int = 1,
        cached: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.graph, self.leads, self.threads, self.cached = graph, leads, threads, cached
        self.packing, self.dtype = pack_layer, dtype
        self.chosen: dict[int, Chosen] = {}  # size class -> what was measured
        self.given: dict[int, Entry] = {}  # size class -> what was chosen on this machine before
        self._lock = threading.Lock()
        self._first = torch.Size(graph.shapes[graph.inputs[0]])
        alone = len(graph.inputs) == len(graph.outputs) == 1 and leads[0] == 1
        self._images = any(is_image(graph, value) for value in graph.shapes)
        self._bare = 1 + len(self._first) if alone else None  # axes of a batch that needs no reshaping
        self._gate = gate_for(self._first) if alone else None

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One tensor per output of the region; a single one bare."""
        if self._bare is not None and len(inputs) == 1:
            x = inputs[0]
            # The way of small networks: one matrix in, one out.
            y = None if self._gate is None else self._gate.run(x)
            if y is not None:
                return y
            if (
                type(x) in PLAIN
                and x.ndim == self._bare
                and x.dtype is torch.float32
                and x.is_cpu
                and x.shape[1:] == self._first
                and x.is_contiguous()
                and not x.requires_grad
            ):
                chosen = self.chosen.get(size_class(x.shape[0]))
                if chosen is not None and chosen.wins and not self._ragged(x.shape[0]):
                    y = chosen.program.run_one(x)
                    if self._gate is not None and len(x) <= SMALL and 0 < y.numel() <= MOST_KEPT:
                        self._gate.learn(len(x), chosen.program.native, torch.empty_like(y))
                    return y
        return self._run(inputs)

    def _run(self, inputs: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        names = self.graph.inputs
        if len(inputs) != len(names) or not all(isinstance(x, Tensor) for x in inputs):
            given = ", ".join(type(x).__name__ for x in inputs) or "nothing"
            raise ValueError(f"inputs of a packed model: expected tensors for {', '.join(names)}, got {given}")
        lead = inputs[0].shape[: self.leads[0]]
        samples = math.prod(lead)
        taken = [self._checked(i, x, samples) for i, x in enumerate(inputs)]
        outputs = self._outputs(taken, self._ragged(samples))
        shaped = [
            y if len(lead) == 1 else y.view(*lead, *self.graph.shapes[name])
            for y, name in zip(outputs, self.graph.outputs, strict=True)
        ]
        return shaped[0] if len(shaped) == 1 else tuple(shaped)

    def _outputs(self, inputs: list[Tensor], ragged: bool = False) -> list[Tensor]:
        """Whole blocks of images; the rest of them as one more, or as so few are run, whichever is faster."""
        chosen = self._for(inputs)
        samples = len(inputs[0])
        if not chosen.wins:
            with torch.no_grad():
                return reference(self.graph, inputs)
        lanes = chosen.program.lanes
        rest = samples % lanes if ragged else 0
        if rest:
            last = [x[-rest:] for x in inputs]
            other = self._for(last)
            apart = (other.us if other.wins else other.dense_us) * rest / other.samples
            if apart < chosen.us / -(-chosen.samples // lanes):
                first = chosen.program.run([x[:-rest] for x in inputs])
                return [torch.cat(both) for both in zip(first, self._outputs(last), strict=True)]
        return chosen.program.run(inputs)

    def _for(self, inputs: list[Tensor]) -> Chosen:
        return self.chosen.get(size_class(len(inputs[0]))) or self.decide(inputs)

    def _ragged(self, samples: int) -> bool:
        """Whether images, 16 of which may lie side by side, do not fill their blocks."""
        return self._images and samples > _BLOCK and samples % _BLOCK > 0

    def decide(self, inputs: list[Tensor]) -> Chosen:
        """Measure for as many samples as these inputs have; the answer serves all calls of this size class."""
        size = size_class(len(inputs[0]))
        with self._lock, torch.no_grad():
            if size not in self.chosen:
                self.chosen[size] = self._chosen(size, [_some(x) for x in inputs])
            return self.chosen[size]

    def _chosen(self, size: int, inputs: list[Tensor]) -> Chosen:
        """As before, if that is known; else by measurement."""
        if size in self.given:
            again = rebuild(self.graph, self.given[size], inputs, self.threads, self.packing, self.dtype)
            if again is not None:
                return again
        cache, key = (Cache(self.threads), structure(self.graph, size, self.dtype)) if self.cached else (None, "")
        entry = None if cache is None else cache.get(key)
        again = None if entry is None else rebuild(self.graph, entry, inputs, self.threads, self.packing, self.dtype)
        if again is not None:
            return again
        widths = self._widths(len(inputs[0]))
        tried = [choose(self.graph, inputs, lanes, threads=self.threads, dtype=self.dtype) for lanes in widths]
        found = min(tried, key=lambda chosen: chosen.us)
        if cache is not None:
            cache.put(key, entry_of(self.graph, found))
        return found

    def entries(self) -> dict[int, Entry]:
        """Size class -> what is known to be best on this machine."""
        return self.given | {size: entry_of(self.graph, chosen) for size, chosen in self.chosen.items()}

    def _widths(self, samples: int) -> tuple[int, ...]:
        """Samples side by side to try. Of 16 images every layer may still go one by one; threads share them better."""
        if self._images:
            if samples <= _BLOCK // 2:
                return (1,)
            return (16,) if self.threads == 1 else (16, 1)
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
        """Programs are of this process; the choices go along, for machines like this one."""
        state = self.__dict__.copy()
        state["given"], state["machine"], state["chosen"] = self.entries(), machine_key(self.threads), {}
        del state["_lock"], state["_gate"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.pop("machine") != machine_key(state["threads"]):
            state["given"] = {}
        super().__setstate__(state)
        self._lock = threading.Lock()
        self._gate = None if self._bare is None else gate_for(self._first)


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
