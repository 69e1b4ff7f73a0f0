"""What a program computes, before anything is said of layouts and kernels: nodes over values of one sample."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.nn import functional as F

from secateur.runtime.linear import ACTIVATIONS

__all__ = ["KINDS", "WEIGHTED", "Graph", "Kind", "Node", "reference"]

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One operation. ``residual`` is added before ``activation``; both may be absent.

    Attributes:
        kind: a name of ``KINDS``.
        output: the value that it makes.
        inputs: values that it reads; a residual is the last of them.
        name: of the layer, for people.
        weight: dense, as the layer of torch has it; 0 where removed.
        bias: float32 ``[M]``.
        activation: a name of ``secateur.runtime.ACTIVATIONS``.
        residual: whether the last input is one.
        stride, padding, kernel: of convolutions and pools; groups of convolutions; whether the zeros
            around an image count for an average.
        fixed: the weight is part of the architecture, nobody's to prune.
        scale, eps: of layer norms, whose shift is ``bias``.
    """

    kind: str
    output: str
    inputs: tuple[str, ...]
    name: str = ""
    weight: Tensor | None = None
    bias: Tensor | None = None
    activation: str | None = None
    residual: bool = False
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    count_padding: bool = True
    fixed: bool = False
    scale: Tensor | None = None
    eps: float = 0.0

    @cached_property
    def sparsity(self) -> float:
        """The share of zeros in the weight."""
        if self.weight is None or not self.weight.numel():
            return 0.0
        return 1.0 - int(self.weight.count_nonzero()) / self.weight.numel()


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order in which they can run.

    Attributes:
        nodes: what is computed.
        shapes: value -> its shape without the axes of samples: ``(F,)`` or ``(C, H, W)``.
        inputs: values that come from outside.
        outputs: values that leave.
    """

    nodes: tuple[Node, ...]
    shapes: dict[str, Shape]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def floats(self, value: str) -> int:
        """Numbers of one sample."""
        return math.prod(self.shapes[value])

    def readers(self, value: str) -> list[Node]:
        """The nodes that read a value."""
        return [node for node in self.nodes if value in node.inputs]


def _linear(node: Node, x: Tensor) -> Tensor:
    assert node.weight is not None
    return F.linear(x, node.weight, node.bias)


def _conv(node: Node, x: Tensor) -> Tensor:
    assert node.weight is not None
    return F.conv2d(x, node.weight, node.bias, node.stride, node.padding, groups=node.groups)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a node does, in torch: (node, first input) -> value, before residual and activation."""

    run: Callable[[Node, Tensor], Tensor]
    what: str


KINDS: dict[str, Kind] = {
    "linear": Kind(_linear, "W x + bias"),
    "conv": Kind(_conv, "a convolution in two dimensions"),
    "max_pool": Kind(lambda node, x: F.max_pool2d(x, node.kernel, node.stride, node.padding), "largest of a window"),
    "average_pool": Kind(
        lambda node, x: F.avg_pool2d(x, node.kernel, node.stride, node.padding, count_include_pad=node.count_padding),
        "mean of a window",
    ),
    "mean": Kind(lambda _, x: x.mean((2, 3), keepdim=True), "mean over all places"),
    "flatten": Kind(lambda _, x: x.flatten(1), "an image as a row of numbers"),
    "layer_norm": Kind(
        lambda node, x: F.layer_norm(x, x.shape[-1:], node.scale, node.bias, node.eps), "layer norm over the features"
    ),
    "add": Kind(lambda _, x: x, "a sum, or an activation alone"),
}
WEIGHTED = frozenset({"linear", "conv"})


def reference(graph: Graph, inputs: list[Tensor], times: dict[str, float] | None = None) -> list[Tensor]:
    """Run a graph in torch, dense.

    Args:
        graph: what to compute.
        inputs: one per input of the graph, ``[N, *shape]``.
        times: takes the microseconds of every node, under its output.

    Returns:
        One tensor ``[N, *shape]`` per output.
    """
    values = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        begin = time.perf_counter()
        y = KINDS[node.kind].run(node, values[node.inputs[0]])
        y = y.reshape(len(y), *graph.shapes[node.output])
        if node.residual:
            y = y + values[node.inputs[-1]]
        values[node.output] = ACTIVATIONS[node.activation][1](y)
        if times is not None:
            times[node.output] = 1e6 * (time.perf_counter() - begin)
    return [values[name] for name in graph.outputs]
