"""Where gates stand: behind the batch norm that reads a layer's output directly, else at the layer's output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.model.names import clean_name
from secateur.model.targets import known_weights
from secateur.types import KeyLayout, Layout

__all__ = ["Seen", "channels_of", "gate_layout", "gate_places", "not_once", "seen_between"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What went from layers to batch norms in one run.

    Attributes:
        made: layer -> its outputs, call by call; the tensors themselves: the id of one that died is soon another's.
        read: what each call of a norm read, whether that is ``made`` by a layer and unchanged since, and the norm.
    """

    made: dict[nn.Module, list[Tensor]]
    read: list[tuple[Tensor, bool, nn.Module]]

    def norm_of(self, output: Tensor) -> nn.Module | None:
        """The first norm that read an output as the layer made it."""
        return next((norm for tensor, as_made, norm in self.read if tensor is output and as_made), None)


@torch.no_grad()
def seen_between(model: nn.Module, layers: Iterable[nn.Module], run: Callable[[], Any]) -> Seen:
    """Run a model once and look at layers and at the batch norms that read what they make.

    Args:
        model: the unwrapped module.
        layers: of it.
        run: runs the model once.
    """
    seen = Seen({module: [] for module in layers}, [])
    versions: dict[int, tuple[Tensor, int]] = {}

    def remember(module: nn.Module, _: Any, output: Any) -> None:
        seen.made[module].append(output)
        if isinstance(output, Tensor):
            versions[id(output)] = output, _version(output)

    def reading(module: nn.Module, inputs: Any) -> None:
        known = versions.get(id(inputs[0]))  # another version: a ReLU in place, say, was there first
        seen.read.append((inputs[0], known is not None and known[1] == _version(inputs[0]), module))

    handles = [module.register_forward_hook(remember) for module in seen.made]
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    handles += [norm.register_forward_pre_hook(reading) for norm in norms]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _version(tensor: Tensor) -> int:
    """How often a tensor was written; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


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
        if layout[name].kind == "bias":
            raise ValueError(f"{name!r} is a bias, which has no gate of its own: leave biases out of targets=")
        if not isinstance(module, nn.Linear) and layout[name].kind not in ("conv", "conv_transpose"):
            raise ValueError(
                f"{name!r} belongs to a {type(module).__name__}; gates stand at linear and convolution layers"
            )
    seen = seen_between(model, layers.values(), run)
    places: dict[str, tuple[nn.Module, int]] = {}
    for name, module in layers.items():
        made = seen.made[module]
        if len(made) != 1:
            raise ValueError(not_once(name, len(made)))
        place = seen.norm_of(made[0]) or module
        places[name] = (place, -1 if isinstance(module, nn.Linear) else 1)
    return places


def channels_of(key: KeyLayout) -> int:
    """How many outputs a weight makes."""
    return key.shape[1] * key.groups if key.kind == "conv_transpose" else key.shape[0]


def not_once(name: str, calls: int) -> str:
    """What is said of a layer that is not called once."""
    how = "never" if not calls else f"{calls} times"
    return f"the module of {name!r} is called {how} in one pass; a gate needs exactly one call"
