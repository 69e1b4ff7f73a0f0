"""From a graph to the steps of a program: where every value lies, and who writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, final

from torch import Tensor

from secateur.native.loading import core
from secateur.runtime.arena import Arena
from secateur.runtime.conv_cuts import Planes
from secateur.runtime.convolution import PackedConv, native_planes
from secateur.runtime.depthwise import PackedDepthwise
from secateur.runtime.formats import Packed
from secateur.runtime.geometry import Weights, images_beside, is_image, planes_of
from secateur.runtime.graph import Graph, Node
from secateur.runtime.linear import ACTIVATIONS
from secateur.runtime.words import KNOWN

__all__ = ["Build", "runs"]


@final
class Build:
    """Lays the values of a graph out and makes its steps.

    A value is a panel of features (csrc/program/panel.h) or the planes of images (csrc/conv/planes.h), one after
    another or 16 side by side. In a program of 16 lanes, neighbouring layers whose weights are packed for one image
    are a *span*: its steps run together image by image, so that what they hand on stays in the caches.

    Args:
        graph: what to compute.
        weights: of its layers.
        lanes: samples side by side; where there are images 1 or 16.
        table: kernels of one instruction set.
        spread: turn inputs to panels in steps of their own, so that several threads can share them.
    """

    def __init__(self, graph: Graph, weights: Weights, lanes: int, table: Any, spread: bool) -> None:
        self.graph, self.weights, self.lanes, self.table, self.spread = graph, weights, lanes, table, spread
        self.planes: dict[int, dict[str, Planes]] = {each: planes_of(graph, each) for each in {1, lanes} & {1, 16}}
        self.steps: list[tuple[str, Any, bool]] = []
        self._arena = Arena()
        self._at: dict[tuple[str, int], tuple[int, int]] = {}  # values in the arena: begin, floats from image to image
        self._words: dict[int, dict[str, int]] = {2: {}, 4: {}}  # the same as pairs in bf16, as quads in int8
        self._rows = {name: place for place, name in enumerate(graph.inputs)}  # row-major inputs
        self._left = {name: sum(node.inputs.count(name) for node in graph.nodes) for name in graph.shapes}
        self._left |= {name: self._left[name] + 1 for name in graph.outputs}
        self._beside = images_beside(graph, weights, lanes)  # value -> images side by side
        self._each = False  # whether steps go into a span

    def finish(self) -> tuple[list[str], Any]:
        """The names of the values that the steps make, and the program."""
        graph = self.graph
        for alone, nodes in groupby(graph.nodes, self._alone):
            (self._span if alone else self._run)(list(nodes))
        for place, name in enumerate(graph.outputs):
            if not self._lies(name):
                continue
            if is_image(graph, name):
                source, planes = self.read(name, self.lanes), native_planes(self.planes[self.lanes][name])
                self.step("out", core.FromPlanes(self.table, planes, source, _output(place)))
            else:
                features = graph.floats(name)
                self.step("out", core.FromPanel(self.table, features, self.lanes, self.read(name), _output(place)))
        inputs, outputs = ([graph.floats(name) for name in names] for names in (graph.inputs, graph.outputs))
        native = core.Program(self.lanes, self._arena.size, inputs, outputs)
        for _, step, each in self.steps:
            native.add(step, each)
        return [name for name, _, _ in self.steps], native

    def _alone(self, node: Node) -> bool:
        """Whether a node runs image by image in a program of 16 lanes."""
        return self.lanes > 1 and self._beside.get(node.output) == 1

    def _run(self, nodes: list[Node]) -> None:
        for node in nodes:
            _STEPS[node.kind](self, node)
            self._free(self._read_out(node))

    def _read_out(self, node: Node) -> list[str]:
        """The inputs that nobody else wants."""
        for name in node.inputs:
            self._left[name] -= 1
        return [name for name in dict.fromkeys(node.inputs) if not self._left[name]]

    def _free(self, names: Iterable[str]) -> None:
        for name in names:
            for key in [key for key in self._at if key[0] == name]:
                self._arena.give_back(self._at.pop(key)[0])
            for places in self._words.values():
                if name in places:
                    self._arena.give_back(places.pop(name))

    def _span(self, nodes: list[Node]) -> None:
        """Nodes whose steps run image by image.

        What comes from before or goes on behind the span has a place for every image, and keeps it to the end of the
        span: the next image needs all of it. What stays inside has one place for all images.
        """
        made = {node.output for node in nodes}
        for name in {name: 0 for node in nodes for name in node.inputs if name not in made and name not in self._rows}:
            self.read(name, 1)
        for node in nodes:
            inside = sum(other.inputs.count(node.output) for other in nodes)
            if self._left[node.output] > inside:
                self._make(node.output, 1, self.lanes)
        self._each = True
        done: list[str] = []
        for node in nodes:
            _STEPS[node.kind](self, node)
            over = self._read_out(node)
            self._free(name for name in over if name in made)
            done += over
        self._each = False
        self._free(done)
        for name in self._rows:  # one place for all images: of no use outside
            if (name, 1) in self._at:
                self._arena.give_back(self._at.pop((name, 1))[0])

    def step(self, name: str, step: Any) -> None:
        """Put a step behind the others; it makes the value ``name``, or is a conversion, ``in`` or ``out``."""
        self.steps.append((name, step, self._each))

    def read(self, name: str, beside: int = 0) -> Any:
        """Where a value lies in the arena, with as many images side by side as its reader wants.

        An input is brought there by its first reader, and so is a value that lies otherwise.
        """
        image = is_image(self.graph, name)
        beside = beside or self._beside.get(name, self.lanes)
        if (name, beside) not in self._at:
            lies = self._lies(name)
            if not lies:
                ends = core.Place(core.Where.input, self._rows[name]), self._make(name, beside)
                if image:
                    self.step("in", core.ToPlanes(self.table, native_planes(self.planes[beside][name]), *ends))
                else:
                    self.step("in", core.ToPanel(self.table, self.graph.floats(name), self.lanes, *ends))
            else:
                source, target = self._place(name, lies[0]), self._make(name, beside, self.lanes)
                x, y = (native_planes(self.planes[lanes][name]) for lanes in (lies[0], beside))
                self.step("regroup", core.Regroup(self.table, x, y, source, target))
        return self._place(name, beside)

    def _lies(self, name: str) -> list[int]:
        return [beside for key, beside in self._at if key == name]

    def words(self, name: str, inputs: int) -> Any:
        """Where a value lies in words of so many inputs; its first reader brings it there."""
        places = self._words[inputs]
        if name not in places:
            features, bare = self.graph.floats(name), name in self._rows and not self._lies(name)
            source = core.Place(core.Where.input, self._rows[name]) if bare else self.read(name)
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
        beside = self._beside.get(name, self.lanes)
        return self._place(name, beside) if (name, beside) in self._at else self._make(name, beside)

    def _make(self, name: str, beside: int, images: int = 1) -> Any:
        """A place; images that lie one after another get one each."""
        each = 0
        if is_image(self.graph, name):
            size = self.planes[beside][name].floats
            if beside < images:
                each, size = size, size * images
        else:
            size = core.panel_floats(self.graph.floats(name), self.lanes)
        self._at[name, beside] = self._arena.take(size), each
        return self._place(name, beside)

    def _place(self, name: str, beside: int) -> Any:
        return core.Place(core.Where.arena, *self._at[name, beside])

    def linear(self, node: Node) -> None:
        """Reads an input and writes an output where they are, if nobody else wants them."""
        graph, x = self.graph, node.inputs[0]
        packed = self.weights[node.output]
        assert isinstance(packed, Packed)
        alone = not self.spread and x in self._rows and not self._lies(x) and self._left[x] == 1
        # One reader turns a value to words itself, K-block by K-block; several readers or threads share it.
        inputs = self._inputs(node)
        alike = sum(self._inputs(reader) == inputs for reader in graph.readers(x))
        shared = inputs > 1 and (self.spread or alike > 1)
        bare = core.Place(core.Where.input, self._rows[x]) if alone else None
        source = self.words(x, inputs) if shared else bare or self.read(x)
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
        beside = self._beside.get(node.output, 0)
        x, other = [*(self.read(name, beside) for name in names), None][:2]
        if beside:
            first, second = [*(native_planes(self.planes[beside][name]) for name in names), None][:2]
            y, planes = self.make(node.output), native_planes(self.planes[beside][node.output])
            step = core.AddPlanes(self.table, first, second, planes, x, other, y, _activation(node))
        else:
            floats, y = core.panel_floats(self.graph.floats(node.output), self.lanes), self.make(node.output)
            step = core.Add(self.table, floats, x, other, y, _activation(node))
        self.step(node.output, step)

    def layer_norm(self, node: Node) -> None:
        """Over the features of a panel."""
        scale, shift = _own(node.scale), _own(node.bias)
        place = self.graph.floats(node.output), self.lanes, self.read(node.inputs[0]), self.make(node.output)
        self.step(node.output, core.LayerNorm(self.table, *place, _address(scale), _address(shift), node.eps))

    def flatten(self, node: Node) -> None:
        """Another name for what is row-major already; planes are turned to a panel."""
        x = node.inputs[0]
        if x in self._rows:
            self._rows[node.output] = self._rows[x]
        elif is_image(self.graph, x):
            source, planes = self.read(x, self.lanes), native_planes(self.planes[self.lanes][x])
            self.step(node.output, core.FromPlanes(self.table, planes, source, self.make(node.output)))
        else:  # means of planes are a panel already, but one value has one place
            floats, source = core.panel_floats(self.graph.floats(x), self.lanes), self.read(x)
            self.step(node.output, core.Add(self.table, floats, source, None, self.make(node.output), 0))

    def conv(self, node: Node) -> None:
        """A convolution, dense ones too."""
        packed = self.weights[node.output]
        assert isinstance(packed, PackedConv | PackedDepthwise)
        beside = self._beside[node.output]
        source = self.read(node.inputs[0], beside)
        residual = self.read(node.inputs[1], beside) if node.residual else None
        if node.residual and beside > 1 and self._left[node.inputs[1]] == 1:
            self._at[node.output, beside] = self._at.pop((node.inputs[1], beside))  # over what nobody reads again
        ends = source, self.make(node.output), residual
        self.step(node.output, packed.step(self.table, *ends, _own(node.bias), _activation(node)))

    def pool(self, node: Node) -> None:
        """The largest or the mean of a window."""
        x, y = node.inputs[0], node.output
        average = core.Pooling.average if node.count_padding else core.Pooling.average_pixels
        kind = core.Pooling.maximum if node.kind == "max_pool" else average
        beside = self._beside[y]
        ends = self.read(x, beside), self.make(y)
        geometry = native_planes(self.planes[beside][x]), native_planes(self.planes[beside][y])
        self.step(y, core.Pool(self.table, kind, *geometry, node.kernel[0], node.stride[0], node.padding[0], *ends))

    def mean(self, node: Node) -> None:
        """Over all pixels of a plane, to a panel."""
        x = node.inputs[0]
        source, planes = self.read(x, self.lanes), native_planes(self.planes[self.lanes][x])
        self.step(node.output, core.GlobalMean(self.table, planes, source, self.make(node.output)))


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
