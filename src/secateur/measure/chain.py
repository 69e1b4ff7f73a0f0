"""A network as a plain chain of layers: what the path count needs to know, or why it is none.

The forward is traced symbolically (``torch.fx``), so that a module with ``F.relu`` and ``x.view``
in its forward is read as well as a ``Sequential``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import fx, nn

from secateur.model.names import clean_name, unwrap

__all__ = ["Link", "chain_of"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_UNITWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
"""Modules in which channel i of the output comes from channel i of the input alone."""

_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset({
    F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.tanh, F.sigmoid, F.softplus, F.dropout, F.dropout2d,
    F.hardtanh, F.hardswish, torch.relu, torch.tanh, torch.sigmoid,
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool2d,
})  # fmt: skip
_METHODS = frozenset({"relu", "tanh", "sigmoid", "contiguous"})
_FLATTENS = frozenset({"flatten", "view", "reshape", "mean"})


@dataclass(frozen=True)
class Link:
    """One layer of the chain.

    Attributes:
        weight: the name of its weight.
        shape: shape of that weight, [out, in / groups, ...].
        groups: of a convolution, else 1.
        riders: parameters with one element per output channel: its bias, and batch norms that follow.
        flattened: channel-major features per channel of the layer before; 1 where nothing was flattened.
    """

    weight: str
    shape: tuple[int, ...]
    groups: int
    riders: tuple[str, ...]
    flattened: int


def chain_of(model: nn.Module) -> tuple[Link, ...] | str:
    """The layers from input to output, or the reason why the network is no plain chain.

    Args:
        model: any module.

    Returns:
        Links in order; or a clause that completes "not counted, because ...".

    Example:
        >>> [link.weight for link in chain_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))]
        ['0.weight', '2.weight']
        >>> chain_of(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)))
        "'0' is a LayerNorm, which a plain chain does not have"
    """
    root = unwrap(model)
    if isinstance(root, _LAYERS):  # torch.fx would trace into its functions
        return (_link(root, "", None, False),)
    try:
        graph = fx.Tracer().trace(root)
    except Exception as error:  # noqa: BLE001 - whatever a user's forward raises on symbols, it is no chain for us
        return f"its forward cannot be traced symbolically ({type(error).__name__})"
    try:
        return _Walk(root).follow(graph)
    except _NotAChain as reason:
        return str(reason)


class _NotAChain(Exception):
    """The reason; ``chain_of`` returns it."""


def _link(layer: Any, name: str, before: Link | None, flattened: bool) -> Link:
    prefix = f"{name}." if name else ""
    shape, groups = tuple(layer.weight.shape), getattr(layer, "groups", 1)
    riders = (f"{prefix}bias",) if layer.bias is not None else ()
    factor = 1
    if before is not None:
        inputs, channels = shape[1] * groups, before.shape[0]
        after_conv = len(before.shape) > 2
        if len(shape) == 2 and after_conv and flattened and inputs % channels == 0:
            factor = inputs // channels
        elif inputs != channels or (len(shape) == 2) == after_conv:
            raise _NotAChain(f"how {name!r} reads the outputs of {before.weight!r} is not clear from the shapes")
    return Link(f"{prefix}weight", shape, groups, riders, factor)


@final
class _Walk:
    """Along the traced graph, one value at a time."""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._links: list[Link] = []
        self._modules: set[int] = set()
        self._flattened = False

    def follow(self, graph: fx.Graph) -> tuple[Link, ...]:
        value: fx.Node | None = None
        shapes: set[fx.Node] = set()  # sizes, and numbers computed from them
        for node in graph.nodes:
            inputs = [n for n in node.all_input_nodes if n not in shapes]
            if node.op == "placeholder":
                if value is not None:
                    raise _NotAChain("it has several inputs")
            elif node.op != "output" and ((node.all_input_nodes and not inputs) or _asks_size(node)):
                shapes.add(node)
                continue
            elif inputs != [value]:
                raise _NotAChain(f"paths join or branch at {node.name!r}")
            elif node.op == "call_module":
                self._module(str(node.target))
            elif node.op != "output":
                self._call(node)
            value = node
        if not self._links:
            raise _NotAChain("it has no linear layer or convolution")
        return tuple(self._links)

    def _module(self, target: str) -> None:
        module, name = self._root.get_submodule(target), clean_name(target)
        before = self._links[-1] if self._links else None
        if id(module) in self._modules and next(module.parameters(), None) is not None:
            raise _NotAChain(f"{name!r} is called twice")
        self._modules.add(id(module))
        if isinstance(module, _LAYERS):
            self._links.append(_link(module, name, before, self._flattened))
            self._flattened = False
        elif isinstance(module, _NORMS) and before is not None:
            if module.num_features != before.shape[0] or self._flattened:
                raise _NotAChain(f"{name!r} normalises {module.num_features} features of {before.shape[0]} channels")
            riders = tuple(f"{name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False))
            self._links[-1] = replace(before, riders=before.riders + riders)
        elif isinstance(module, nn.Flatten):
            self._flattened = True
        elif not isinstance(module, _UNITWISE):
            raise _NotAChain(f"{name!r} is a {type(module).__name__}, which a plain chain does not have")

    def _call(self, node: fx.Node) -> None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        if name in _FLATTENS:
            self._flattened = True
        elif node.target not in _FUNCTIONS and not (node.op == "call_method" and name in _METHODS):
            raise _NotAChain(f"{name!r} is not an operation of a plain chain")


def _asks_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.op == "call_function" and node.target is getattr and node.args[1:2] in (("shape",), ("ndim",))
