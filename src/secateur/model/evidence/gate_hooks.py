"""Gates on their way through a pass: ones that multiply outputs, or inputs, of modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from secateur.model.evidence.example_axis import ExampleAxis
from secateur.model.evidence.gate_places import channels_of, gate_places, not_once
from secateur.model.names import clean_name
from secateur.types import Layout, Member

__all__ = ["GateHooks", "Stand", "reader_stands", "stands"]


@dataclass(frozen=True, slots=True)
class Stand:
    """Where one gate multiplies.

    Attributes:
        gate: its name; one gate may stand at several modules.
        size: how many numbers it has.
        module: whose output, or first input, it multiplies.
        axis: along which.
        owner: number of the gate at each place along the axis, -1 for none; None: the places in order.
        label: the weight, for messages.
    """

    gate: str
    size: int
    module: nn.Module
    axis: int
    owner: Tensor | None
    label: str


def stands(root: nn.Module, layout: Layout, run: Any) -> list[Stand]:
    """Gates on the outputs of layers, one for each; see ``gate_places``.

    Args:
        root: an unwrapped module.
        layout: layers, as ``gate_layout`` gives them.
        run: runs the model once.
    """
    places = gate_places(root, layout, run)
    return [Stand(name, channels_of(layout[name]), *place, None, name) for name, place in places.items()]


def reader_stands(root: nn.Module, layout: Layout) -> list[Stand]:
    """Gates on what the readers of coupled groups read, one for each group.

    Args:
        root: an unwrapped module.
        layout: groups.

    Raises:
        ValueError: for a group that something else than a plain linear or convolution layer reads.
    """
    found: list[Stand] = []
    owners = {clean_name(path): module for path, module in root.named_modules()}
    for group, key in layout.items():
        readers = [member for member in key.members if member.part == "in"]
        if not readers:
            raise ValueError(
                f"group {group!r} is read by no weight, so nobody sees what is read of it; exclude=[{group!r}]"
            )
        for member in readers:
            module = owners.get(member.name.rpartition(".")[0])
            found.append(Stand(group, key.shape[0], *_reading(module, member), torch.tensor(member.owner), member.name))
    return found


def _reading(module: nn.Module | None, member: Member) -> tuple[nn.Module, int]:
    plain = isinstance(module, nn.Linear) or (
        isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1
    )
    if module is None or not plain or member.dim != 1:
        raise ValueError(
            f"{member.name!r} reads the units and belongs to a {type(module).__name__}; what is read can be seen at "
            "linear layers and convolutions without groups. Exclude the group, or take a criterion that looks at the "
            "layers that make the units, such as gate_taylor or cosine"
        )
    return module, -1 if isinstance(module, nn.Linear) else 1


@final
class GateHooks:
    """Puts gates up, makes new ones for each pass, and takes all down in the end.

    A gate is ``[size]``, or ``[examples, size]``: one for each example of a batch, along the axis of the examples.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._gates: dict[str, Tensor] = {}
        self._calls: Counter[tuple[str, str]] = Counter()
        self._placed: list[Stand] = []
        self._examples: int | None = None
        self._each = False
        self._axes: Mapping[str, ExampleAxis] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """What is put up inside goes when it ends."""
        with self._stack:
            yield

    @property
    def placed(self) -> bool:
        """Whether gates are up."""
        return bool(self._placed)

    def place(self, found: list[Stand], axes: Mapping[str, ExampleAxis] | None = None) -> None:
        """Put gates up; with axes of examples, one for each example."""
        self._placed, self._each, self._axes = found, axes is not None, axes or {}
        for stand in found:
            if stand.owner is not None:
                hook = stand.module.register_forward_pre_hook(self._before(stand), with_kwargs=True)
            else:
                hook = stand.module.register_forward_hook(self._behind(stand))
            self._stack.callback(hook.remove)

    def begin(self, examples: int | None = None) -> None:
        """A pass begins."""
        self._calls.clear()
        self._gates.clear()
        self._examples = examples

    def gates(self) -> Mapping[str, Tensor]:
        """The gates of this pass.

        Raises:
            ValueError: where a layer was not called once.
        """
        for stand in self._placed:
            if self._calls[stand.gate, stand.label] != 1:
                raise ValueError(not_once(stand.label, self._calls[stand.gate, stand.label]))
        return {stand.gate: self._gates[stand.gate] for stand in self._placed}

    def _behind(self, stand: Stand) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return output * self._spread(stand, output)

        return hook

    def _before(self, stand: Stand) -> Any:
        def hook(module: nn.Module, inputs: Any, kwargs: Any) -> Any:
            if not inputs:
                name = next(iter(kwargs))
                return inputs, {**kwargs, name: kwargs[name] * self._spread(stand, kwargs[name])}
            return (inputs[0] * self._spread(stand, inputs[0]), *inputs[1:]), kwargs

        return hook

    def _spread(self, stand: Stand, values: Tensor) -> Tensor:
        """The gate in a shape that multiplies ``values``; other observers see one multiplication and no more."""
        self._calls[stand.gate, stand.label] += 1
        with _disable_current_modes():
            gate = self._gate(stand, values)
            if stand.owner is not None:
                owner = stand.owner.to(values.device)
                ones = gate.new_ones(*gate.shape[:-1], 1)
                gate = torch.cat([gate, ones], -1)[..., owner]  # -1 is the last: places that no unit owns
            shape = [1] * values.dim()
            shape[stand.axis] = gate.shape[-1]
            if self._each:
                own = self._axes.get(stand.label, ExampleAxis())
                rows, examples = values.shape[own.axis], gate.shape[0]
                if rows % examples or stand.axis % values.dim() == own.axis:
                    raise ValueError(
                        f"{stand.label!r} has {tuple(values.shape)} values for {examples} examples, which should lie "
                        f"along axis {own.axis}. Take gate_taylor, which has one gate for the batch"
                    )
                shape[own.axis] = rows
                gate = own.spread(gate, rows)
                gate = gate if own.axis < stand.axis % values.dim() else gate.t()
            return gate.to(values.dtype).reshape(shape)

    def _gate(self, stand: Stand, values: Tensor) -> Tensor:
        if stand.gate not in self._gates:
            dtype = values.dtype if values.dtype in (torch.float32, torch.float64) else torch.float32
            rows: list[int] = [self._rows(stand, values)] if self._each else []
            made = torch.ones(*rows, stand.size, dtype=dtype, device=values.device)
            self._gates[stand.gate] = made.requires_grad_()
        return self._gates[stand.gate]

    def _rows(self, stand: Stand, values: Tensor) -> int:
        """Examples of the pass; a look at the model beside the passes may have fewer, and its gates are not used."""
        if self._examples is not None:
            return self._examples
        return values.shape[self._axes.get(stand.label, ExampleAxis()).axis]
