"""Unit gates: ones that multiply a layer's output channels, so that their gradients measure whole units.

A gate stands after the batch norm that reads the layer's output directly, else at the layer's output
(Molchanov et al. 2019, arXiv 1906.10771, place it after the batch norm: before it a train-mode batch
norm would divide the gate out).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.model.evidence.passes import Found, Observer, Pass
from secateur.model.evidence.source import Request
from secateur.model.names import clean_name
from secateur.model.targets import known_weights
from secateur.types import KeyLayout, Layout

__all__ = ["GATE_KINDS", "GateGradients", "gate_layout", "gate_places"]

GATE_KINDS: Mapping[str, str] = {"gate_grad_sq": "per unit: mean over batches of the squared gradient of a gate"}


def gate_layout(model: nn.Module, layout: Layout) -> dict[str, KeyLayout]:
    """The layers at whose outputs gates measure the units: the targets, or the producers of coupled groups.

    Of a group those producers count that are weights of linear and convolution layers; what raw parameters and
    attention projections add to a residual stream has no gate.

    Args:
        model: the unwrapped module.
        layout: the targets, parameters or groups.

    Returns:
        Parameter name -> the layout of that parameter.

    Raises:
        ValueError: for a group without such a producer.
    """
    if all(key.kind != "group" for key in layout.values()):
        return dict(layout)
    owners = {clean_name(path): module for path, module in model.named_modules()}
    weights = known_weights(model)
    found: dict[str, KeyLayout] = {}
    for group, key in layout.items():
        gated_here: dict[str, KeyLayout] = {}
        for member in key.members:
            own = weights.get(member.name)
            if own is None or member.part != "out" or member.dim != (1 if own.kind == "conv_transpose" else 0):
                continue
            if own.kind in ("conv", "conv_transpose") or isinstance(owners[member.name.rpartition(".")[0]], nn.Linear):
                gated_here[member.name] = own
        found |= gated_here
        if not gated_here:
            raise ValueError(
                f"group {group!r} is made by no linear or convolution layer, so there is no place for a gate; "
                f"exclude=[{group!r}], or take a criterion of level 'weight' such as 'taylor'"
            )
    return found


def gate_places(model: nn.Module, layout: Layout, run: Any) -> dict[str, tuple[nn.Module, int]]:
    """Where the gate of each target goes.

    Args:
        model: the unwrapped module.
        layout: the targets.
        run: a call without arguments that runs the model once.

    Returns:
        Parameter name -> (module whose output is gated, axis of the channels counted from the left for
        convolutions, -1 for linear layers).

    Raises:
        ValueError: for a target whose module is never called, is called more than once in a pass, or is
            not a linear or convolution layer.
    """
    owners = {clean_name(path): module for path, module in model.named_modules()}
    layers = {name: owners[name.rpartition(".")[0]] for name in layout}
    for name, module in layers.items():
        if not isinstance(module, nn.Linear) and layout[name].kind not in ("conv", "conv_transpose"):
            raise ValueError(
                f"{name!r} belongs to a {type(module).__name__}; gates stand at linear and convolution layers"
            )
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    outputs: dict[nn.Module, list[Tensor]] = {module: [] for module in layers.values()}
    readers: list[tuple[Any, nn.Module]] = []  # the tensors themselves: the id of one that died is soon another's

    def remember(module: nn.Module, _: Any, output: Any) -> None:
        outputs[module].append(output)

    def reading(module: nn.Module, inputs: Any) -> None:
        readers.append((inputs[0], module))

    handles = [m.register_forward_hook(remember) for m in outputs]
    handles += [m.register_forward_pre_hook(reading) for m in norms]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    places: dict[str, tuple[nn.Module, int]] = {}
    for name, module in layers.items():
        seen = outputs[module]
        if len(seen) != 1:
            raise ValueError(_not_once(name, len(seen)))
        place = next((norm for tensor, norm in readers if tensor is seen[0]), module)
        places[name] = (place, -1 if isinstance(module, nn.Linear) else 1)
    return places


@final
class GateGradients(Observer):
    """Gates at the outputs of layers, through all passes; squares of their gradients, batch by batch, in float64."""

    needs_gradients = True

    def __init__(self, request: Request) -> None:
        self._root, self._layout = request.root, gate_layout(request.root, request.layout)
        self._places: dict[str, tuple[nn.Module, int]] = {}
        self._gates: dict[str, Tensor] = {}
        self._calls: Counter[str] = Counter()
        self._squares: dict[str, Tensor] = {}
        self._count = 0
        self._stack = ExitStack()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The gates go when the passes are over."""
        with self._stack:
            yield

    def prepare(self, one: Pass) -> None:
        """Find the places by the first batch, and put gates there."""
        if self._places:
            return
        self._places = gate_places(self._root, self._layout, one.forward)
        for name, (module, axis) in self._places.items():
            device = next((t.device for t in module.parameters()), torch.device("cpu"))
            self._gates[name] = torch.ones(_channels(self._layout[name]), device=device, requires_grad=True)
            self._stack.callback(module.register_forward_hook(self._multiply(name, axis)).remove)

    @contextmanager
    def around(self, one: Pass) -> Iterator[None]:
        """Count the calls of this pass."""
        self._calls.clear()
        yield

    def variables(self) -> Mapping[str, Tensor]:
        """The gates."""
        for name in self._gates:
            if self._calls[name] != 1:
                raise ValueError(_not_once(name, self._calls[name]))
        return self._gates

    def take(self, gradients: Mapping[str, Tensor]) -> None:
        """Add one batch."""
        self._count += 1
        for name, gradient in gradients.items():
            self._squares[name] = self._squares.get(name, 0) + gradient.double().square()

    def result(self) -> Found:
        """Means over the batches."""
        return {"gate_grad_sq": {name: total / self._count for name, total in self._squares.items()}}

    def _multiply(self, name: str, axis: int) -> Any:
        gate = self._gates[name]

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            self._calls[name] += 1
            shape = [1] * output.dim()
            shape[axis] = gate.numel()
            return output * gate.to(output.dtype).view(shape)

        return hook


def _channels(key: KeyLayout) -> int:
    return key.shape[1] * key.groups if key.kind == "conv_transpose" else key.shape[0]


def _not_once(name: str, calls: int) -> str:
    how = "never" if not calls else f"{calls} times"
    return f"the module of {name!r} is called {how} in one pass; a gate needs exactly one call"
