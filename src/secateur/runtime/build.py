"""From a graph to the steps of a program: where every value lies, and who writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, final

from torch import Tensor

from secateur.native.loading import core
from secateur.runtime.conv_cuts import Planes
from secateur.runtime.convolution import PackedConv, native_planes
from secateur.runtime.depthwise import PackedDepthwise
from secateur.runtime.formats import Packed
from secateur.runtime.geometry import planes_of
from secateur.runtime.graph import Graph, Node
from secateur.runtime.linear import ACTIVATIONS
from secateur.runtime.words import KNOWN

__all__ = ["Build", "Weights", "runs"]

Weights: TypeAlias = Mapping[str, Packed | PackedConv | PackedDepthwise]
"""Output of a layer -> its packed weight."""


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
class Build:
    """Lays the values of a graph out and makes its steps.

    A value is a panel of features (csrc/program/panel.h) or the planes of an image (csrc/conv/planes.h).

    Args:
        graph: what to compute.
        weights: of its layers.
        lanes: samples side by side; 1 where there are images.
        table: kernels of one instruction set.
        spread: turn inputs to panels in steps of their own, so that several threads can share them.
    """

    def __init__(self, graph: Graph, weights: Weights, lanes: int, table: Any, spread: bool) -> None:
        self.graph, self.weights, self.lanes, self.table, self.spread = graph, weights, lanes, table, spread
        self.planes: dict[str, Planes] = planes_of(graph) if lanes == 1 else {}
        self.steps: list[tuple[str, Any]] = []
        self._arena = _Arena()
        self._at: dict[str, int] = {}  # values in the arena
        self._words: dict[int, dict[str, int]] = {2: {}, 4: {}}  # the same as pairs in bf16, as quads in int8
        self._rows = {name: place for place, name in enumerate(graph.inputs)}  # row-major inputs
        self._left = {name: sum(node.inputs.count(name) for node in graph.nodes) for name in graph.shapes}
        for name in graph.outputs:
            self._left[name] += 1

    def finish(self) -> tuple[list[str], Any]:
        """The names of the values that the steps make, and the program."""
        graph = self.graph
        for node in graph.nodes:
            _STEPS[node.kind](self, node)
            for name in node.inputs:
                self._left[name] -= 1
                if not self._left[name]:
                    for places in (self._at, *self._words.values()):
                        if name in places:
                            self._arena.give_back(places[name])
        for place, name in enumerate(graph.outputs):
            if name not in self._at:
                continue
            if name in self.planes:
                self.step("out", core.FromPlanes(native_planes(self.planes[name]), self._place(name), _output(place)))
            else:
                features = graph.floats(name)
                self.step("out", core.FromPanel(self.table, features, self.lanes, self._place(name), _output(place)))
        native = core.Program(
            self.lanes,
            self._arena.size,
            [graph.floats(name) for name in graph.inputs],
            [graph.floats(name) for name in graph.outputs],
        )
        for _, step in self.steps:
            native.add(step)
        return [name for name, _ in self.steps], native

    def step(self, name: str, step: Any) -> None:
        """Put a step behind the others; it makes the value ``name``, or is a conversion, ``in`` or ``out``."""
        self.steps.append((name, step))

    def read(self, name: str) -> Any:
        """Where a value lies in the arena; an input is brought there by its first reader."""
        if name not in self._at:
            place = core.Place(core.Where.input, self._rows[name])
            target = self.make(name)
            if name in self.planes:
                self.step("in", core.ToPlanes(native_planes(self.planes[name]), place, target))
            else:
                self.step("in", core.ToPanel(self.table, self.graph.floats(name), self.lanes, place, target))
        return self._place(name)

    def words(self, name: str, inputs: int) -> Any:
        """Where a value lies in words of so many inputs; its first reader brings it there."""
        places = self._words[inputs]
        if name not in places:
            features, bare = self.graph.floats(name), name in self._rows and name not in self._at
            source = core.Place(core.Where.input, self._rows[name]) if bare else self._place(name)
            places[name] = self._arena.take(core.words_floats(inputs, features, self.lanes))
            target = core.Place(core.Where.arena, places[name])
            if inputs == 4:
                self.step("in", core.ToGrid(self.table, features, self.lanes, source, target))
            self.step("in", core.ToWords(self.table, inputs, features, self.lanes, source, target))
        return core.Place(core.Where.arena, places[name])

    def _inputs(self, node: Node) -> int:
        """Of a word of its weights."""
        packed = self.weights.get(node.output)
        return KNOWN[packed.layout].inputs if isinstance(packed, Packed) else 1

    def make(self, name: str) -> Any:
        """A place in the arena for a value."""
        floats = self.graph.floats(name)
        size = self.planes[name].floats if name in self.planes else core.panel_floats(floats, self.lanes)
        self._at[name] = self._arena.take(size)
        return self._place(name)

    def _place(self, name: str) -> Any:
        return core.Place(core.Where.arena, self._at[name])

    def linear(self, node: Node) -> None:
        """Reads an input and writes an output where they are, if nobody else wants them."""
        graph, x = self.graph, node.inputs[0]
        packed = self.weights[node.output]
        assert isinstance(packed, Packed)
        alone = not self.spread and x in self._rows and x not in self._at and self._left[x] == 1
        # One reader turns a value to words itself, K-block by K-block; several readers or threads share it.
        inputs = self._inputs(node)
        alike = sum(self._inputs(reader) == inputs for reader in graph.readers(x))
        shared = inputs > 1 and (self.spread or alike > 1)
        if shared:
            source = self.words(x, inputs)
        elif alone:
            source = core.Place(core.Where.input, self._rows[x])
        else:
            source = self.read(x)
        residual = self.read(node.inputs[1]) if node.residual else None
        last = node.output in graph.outputs and not graph.readers(node.output) and residual is None
        target = _output(graph.outputs.index(node.output)) if last else self.make(node.output)
        handle = packed.native if self.table is core.active else packed.handle(self.table)
        bias = _own(node.bias)
        step = core.Linear(handle, self.lanes, source, target, residual, _address(bias), _activation(node), shared)
        self.step(node.output, step)

    def add(self, node: Node) -> None:
        """A sum, or an activation alone."""
        names = node.inputs[:2] if node.residual else node.inputs[:1]
        x, other = [*(self.read(name) for name in names), None][:2]
        if node.output in self.planes:
            first, second = [*(native_planes(self.planes[name]) for name in names), None][:2]
            y, planes = self.make(node.output), native_planes(self.planes[node.output])
            step = core.AddPlanes(self.table, first, second, planes, x, other, y, _activation(node))
        else:
            floats, y = core.panel_floats(self.graph.floats(node.output), self.lanes), self.make(node.output)
            step = core.Add(self.table, floats, x, other, y, _activation(node))
        self.step(node.output, step)

    def layer_norm(self, node: Node) -> None:
        """Over the features of a panel."""
        x, y = self.read(node.inputs[0]), self.make(node.output)
        scale, shift = _own(node.scale), _own(node.bias)
        features = self.graph.floats(node.output)
        step = core.LayerNorm(self.table, features, self.lanes, x, y, _address(scale), _address(shift), node.eps)
        self.step(node.output, step)

    def flatten(self, node: Node) -> None:
        """Another name for what is row-major already; planes are turned to a panel."""
        x = node.inputs[0]
        if x in self._rows:
            self._rows[node.output] = self._rows[x]
        elif x in self.planes:
            self.step(node.output, core.FromPlanes(native_planes(self.planes[x]), self.read(x), self.make(node.output)))
        else:  # means of planes are a panel already, but one value has one place
            floats, source, target = core.panel_floats(self.graph.floats(x), 1), self.read(x), self.make(node.output)
            self.step(node.output, core.Add(self.table, floats, source, None, target, 0))

    def conv(self, node: Node) -> None:
        """A convolution, dense ones too."""
        packed = self.weights[node.output]
        assert isinstance(packed, PackedConv | PackedDepthwise)
        source = self.read(node.inputs[0])
        residual = self.read(node.inputs[1]) if node.residual else None
        target = self.make(node.output)
        bias = _own(node.bias)
        self.step(node.output, packed.step(self.table, source, target, residual, bias, _activation(node)))

    def pool(self, node: Node) -> None:
        """The largest or the mean of a window."""
        x, y = node.inputs[0], node.output
        average = core.Pooling.average if node.count_padding else core.Pooling.average_pixels
        kind = core.Pooling.maximum if node.kind == "max_pool" else average
        source, target = self.read(x), self.make(y)
        geometry = native_planes(self.planes[x]), native_planes(self.planes[y])
        step = core.Pool(self.table, kind, *geometry, node.kernel[0], node.stride[0], node.padding[0], source, target)
        self.step(y, step)

    def mean(self, node: Node) -> None:
        """Over all pixels of a plane, to a panel."""
        x = node.inputs[0]
        source, target = self.read(x), self.make(node.output)
        self.step(node.output, core.GlobalMean(self.table, native_planes(self.planes[x]), source, target))


def _output(place: int) -> Any:
    return core.Place(core.Where.output, place)


def _own(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().float().contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _activation(node: Node) -> int:
    return ACTIVATIONS[node.activation][0]


def runs(kind: str) -> bool:
    """Tell whether programs have steps for this kind of node."""
    return kind in _STEPS


_STEPS: dict[str, Callable[[Build, Node], None]] = {
    "linear": Build.linear,
    "add": Build.add,
    "layer_norm": Build.layer_norm,
    "flatten": Build.flatten,
    "conv": Build.conv,
    "max_pool": Build.pool,
    "average_pool": Build.pool,
    "mean": Build.mean,
}
