"""Programs: a graph, the packed weight that each of its layers runs with, and one call of the core for all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from secateur.native.loading import core
from secateur.runtime.build import Build
from secateur.runtime.geometry import Weights
from secateur.runtime.graph import Graph

__all__ = ["LANES", "Program", "lanes_of"]

LANES = (1, 16, 32, 64)
"""How many samples lie side by side."""


def lanes_of(samples: int) -> int:
    """The width of panels for so many samples: what else is wasted on samples that are not there.

    Example:
        >>> [lanes_of(n) for n in (1, 2, 17, 33, 1000)]
        [1, 16, 32, 64, 64]
    """
    return next((lanes for lanes in LANES if samples <= lanes), LANES[-1])


@final
class Program:
    """A graph in the core, for chunks of ``lanes`` samples.

    Immutable: any number of threads may run one at the same time.

    Args:
        graph: what to compute; its inputs and outputs are row-major.
        weights: output of a layer -> its packed weight.
        lanes: samples side by side, one of ``LANES``.
        table: kernels of one instruction set; by default the active one.
        poison: begin every run in an arena of NaN, so that reading what was never written shows.
        spread: lay steps out for several threads: values are turned to panels by a step of their own.

    Raises:
        ValueError: a layout does not run at these lanes, or the core is absent.
    """

    __slots__ = ("_shape", "graph", "lanes", "names", "native")

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        lanes: int,
        table: Any = None,
        poison: bool = False,
        spread: bool = False,
    ) -> None:
        if core is None:
            raise ValueError("programs run in the C++ core, which is absent: reinstall with a C++17 compiler")
        build = Build(graph, weights, lanes, core.active if table is None else table, spread)
        self.graph, self.lanes = graph, lanes
        self.names, self.native = build.finish()
        self._shape = graph.shapes[graph.outputs[0]]
        if poison:
            self.native.poison()

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run all samples.

        Args:
            inputs: one per input of the graph, float32 ``[N, *shape]``, contiguous, on the CPU: not checked here.

        Returns:
            One tensor ``[N, *shape]`` per output.
        """
        samples = len(inputs[0])
        outputs = [inputs[0].new_empty(samples, *self.graph.shapes[name]) for name in self.graph.outputs]
        self.native.run([x.data_ptr() for x in inputs], [y.data_ptr() for y in outputs], samples)
        return outputs

    def run_one(self, x: Tensor) -> Tensor:
        """As `run`, for a program with one input and one output: what small networks pay for each call counts."""
        y = x.new_empty(x.shape[0], *self._shape)  # of its dtype, whatever the default is
        self.native.run_one(x.data_ptr(), y.data_ptr(), x.shape[0])
        return y

    def share(self, threads: int, backend: str, step_us: Sequence[float]) -> None:
        """Run on several threads from now on: once, before anybody else calls it.

        Args:
            threads: at most so many, the caller's among them.
            backend: ``own`` threads, or those of torch (``gomp``).
            step_us: from `time`, for a chunk of ``lanes`` samples.
        """
        self.native.share(threads, backend, list(step_us))

    def time(self, inputs: Sequence[Tensor]) -> list[tuple[str, float]]:
        """Microseconds of each step under the value that it makes; conversions are ``in`` and ``out``."""
        samples = len(inputs[0])
        outputs = [inputs[0].new_empty(samples, *self.graph.shapes[name]) for name in self.graph.outputs]
        seconds = self.native.time([x.data_ptr() for x in inputs], [y.data_ptr() for y in outputs], samples)
        return [(name, 1e6 * s) for name, s in zip(self.names, seconds, strict=True)]
