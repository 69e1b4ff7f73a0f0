"""Programs: a graph, the packed weight that each of its layers runs with, and one call of the core for all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from secateur.native.loading import core
from secateur.runtime.formats import Packed
from secateur.runtime.graph import Graph, Node
from secateur.runtime.linear import ACTIVATIONS

__all__ = ["LANES", "Program", "lanes_of", "runs"]

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
        weights: Mapping[str, Packed],
        lanes: int,
        table: Any = None,
        poison: bool = False,
        spread: bool = False,
    ) -> None:
        if core is None:
            raise ValueError("programs run in the C++ core, which is absent: reinstall with a C++17 compiler")
        build = _Build(graph, weights, lanes, table, spread)
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
        outputs = [torch.empty((samples, *self.graph.shapes[name])) for name in self.graph.outputs]
        self.native.run([x.data_ptr() for x in inputs], [y.data_ptr() for y in outputs], samples)
        return outputs

    def run_one(self, x: Tensor) -> Tensor:
        """As `run`, for a program with one input and one output: what small networks pay for each call counts."""
        y = torch.empty((x.shape[0], *self._shape))
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
        outputs = [torch.empty((samples, *self.graph.shapes[name])) for name in self.graph.outputs]
        seconds = self.native.time([x.data_ptr() for x in inputs], [y.data_ptr() for y in outputs], samples)
        return [(name, 1e6 * s) for name, s in zip(self.names, seconds, strict=True)]


class _Arena:
    """Places for values, taken by the first gap that is large enough, and free again after their last reader."""

    def __init__(self) -> None:
        self.size = 0
        self._taken: list[tuple[int, int]] = []

    def take(self, floats: int) -> int:
        floats = -(-floats // 16) * 16  # whole cache lines
        at = 0
        for begin, end in sorted(self._taken):
            if begin - at >= floats:
                break
            at = max(at, end)
        self._taken.append((at, at + floats))
        self.size = max(self.size, at + floats)
        return at

    def give_back(self, at: int) -> None:
        self._taken = [piece for piece in self._taken if piece[0] != at]


@final
class _Build:
    """Lays the values of a graph out and makes its steps."""

    def __init__(self, graph: Graph, weights: Mapping[str, Packed], lanes: int, table: Any, spread: bool) -> None:
        self.spread = spread
        self.graph, self.weights, self.lanes = graph, weights, lanes
        self.table = core.active if table is None else table
        self.steps: list[tuple[str, Any]] = []
        self._arena = _Arena()
        self._at: dict[str, int] = {}  # values in the arena
        self._rows = {name: place for place, name in enumerate(graph.inputs)}  # row-major inputs
        self._left = {name: sum(node.inputs.count(name) for node in graph.nodes) for name in graph.shapes}
        for name in graph.outputs:
            self._left[name] += 1

    def finish(self) -> tuple[list[str], Any]:
        graph = self.graph
        for node in graph.nodes:
            _STEPS[node.kind](self, node)
        for place, name in enumerate(graph.outputs):
            if name in self._at:
                self._step("out", core.FromPanel, graph.floats(name), self.lanes, self.arena(name), _output(place))
        native = core.Program(
            self.lanes,
            self._arena.size,
            [graph.floats(name) for name in graph.inputs],
            [graph.floats(name) for name in graph.outputs],
        )
        for _, step in self.steps:
            native.add(step)
        return [name for name, _ in self.steps], native

    def _step(self, name: str, kind: Any, *arguments: Any) -> None:
        self.steps.append((name, kind(self.table, *arguments)))

    def arena(self, name: str) -> Any:
        return core.Place(core.Where.arena, self._at[name])

    def panel(self, name: str) -> Any:
        """Where a value lies as a panel; an input is turned to one by its first reader."""
        if name not in self._at:
            place = core.Place(core.Where.input, self._rows[name])
            self._take(name)
            self._step("in", core.ToPanel, self.graph.floats(name), self.lanes, place, self.arena(name))
        return self.arena(name)

    def _take(self, name: str) -> None:
        self._at[name] = self._arena.take(core.panel_floats(self.graph.floats(name), self.lanes))

    def _read(self, node: Node) -> None:
        for name in node.inputs:
            self._left[name] -= 1
            if not self._left[name] and name in self._at:
                self._arena.give_back(self._at[name])

    def linear(self, node: Node) -> None:
        graph, x = self.graph, node.inputs[0]
        packed = self.weights[node.output]
        alone = not self.spread and x in self._rows and x not in self._at and self._left[x] == 1
        source = core.Place(core.Where.input, self._rows[x]) if alone else self.panel(x)
        residual = self.panel(node.inputs[1]) if node.residual else None
        last = node.output in graph.outputs and not graph.readers(node.output) and residual is None
        if last:
            target = _output(graph.outputs.index(node.output))
        else:
            self._take(node.output)
            target = self.arena(node.output)
        bias = None if node.bias is None else node.bias.detach().float().contiguous()
        handle = packed.native if self.table is core.active else packed.handle(self.table)
        step = core.Linear(
            handle,
            self.lanes,
            source,
            target,
            residual,
            0 if bias is None else bias.data_ptr(),
            ACTIVATIONS[node.activation][0],
        )
        self.steps.append((node.output, step))
        self._read(node)

    def add(self, node: Node) -> None:
        x, other = self.panel(node.inputs[0]), self.panel(node.inputs[1]) if node.residual else None
        self._take(node.output)
        floats = core.panel_floats(self.graph.floats(node.output), self.lanes)
        self._step(node.output, core.Add, floats, x, other, self.arena(node.output), ACTIVATIONS[node.activation][0])
        self._read(node)

    def layer_norm(self, node: Node) -> None:
        x = self.panel(node.inputs[0])
        self._take(node.output)
        scale, shift = (None if v is None else v.detach().float().contiguous() for v in (node.scale, node.bias))
        self._step(
            node.output,
            core.LayerNorm,
            self.graph.floats(node.output),
            self.lanes,
            x,
            self.arena(node.output),
            0 if scale is None else scale.data_ptr(),
            0 if shift is None else shift.data_ptr(),
            node.eps,
        )
        self._read(node)

    def flatten(self, node: Node) -> None:
        """Another name for a row-major input."""
        x = node.inputs[0]
        assert x in self._rows, "only inputs are flattened"
        self._rows[node.output] = self._rows[x]
        self._read(node)


def _output(place: int) -> Any:
    return core.Place(core.Where.output, place)


def runs(kind: str) -> bool:
    """Tell whether programs have steps for this kind of node."""
    return kind in _STEPS


_STEPS: dict[str, Callable[[_Build, Node], None]] = {
    "linear": _Build.linear,
    "add": _Build.add,
    "layer_norm": _Build.layer_norm,
    "flatten": _Build.flatten,
}
