"""One run of a model in which every element is followed.

Forward: does it depend on the input? Backward: does anything of the output depend on it?
Nothing is concluded from values that one input happened to give: an element is constant because what it is computed
from is constant, or is multiplied with a weight that is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.model.graph.examples import Example, call, tensors_in
from secateur.model.graph.facts import Shadow, Step
from secateur.model.graph.flow_rules import rule_of
from secateur.model.graph.trace import slow_paths, tensor_names
from secateur.model.quietly import quietly

__all__ = ["Flow", "follow"]


@final
class Flow(TorchDispatchMode):
    """The steps of one run, and what is known of every element.

    Args:
        named: parameters and buffers: they hold the same values whatever the input.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.named = named
        self.shadow = Shadow()
        self.steps: list[Step] = []
        self.names: dict[int, str] = {}
        self.returned: set[int] = set()
        for name, tensor in named.items():
            self.shadow.define(tensor, torch.zeros_like(tensor, dtype=torch.bool))
            self.names[self.shadow.key(tensor)] = name

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not wrapped for torch.compile: nothing is compiled here, and the wrapper imports the compiler (2 s)."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors_in((args, kwargs)))
        writes = bool(func._schema.is_mutable)
        facts = [self.shadow.facts(one) for one in inputs]
        out = func(*args, **kwargs)
        outs = list(tensors_in(out))
        memory = {self.shadow.key(one) for one in inputs}
        moved = outs and not writes and all(self.shadow.key(one) in memory for one in outs)
        if moved and func is not torch.ops.aten.lift_fresh.default:
            return out  # a view: the same memory
        step = Step(func, args, kwargs, inputs, facts, outs, writes)
        if step.name in ("mm", "addmm", "convolution"):
            step.constants = _constants(step)
        self._take(step)
        return out

    def observe(self, tensor: Tensor) -> None:
        """Something outside of torch reads it."""
        self.steps.append(Step(torch.ops.aten._local_scalar_dense.default, (tensor,), {}, [tensor], [], []))

    def _take(self, step: Step) -> None:
        self.steps.append(step)
        for made, varies in zip(step.outs, rule_of(step).varies(step), strict=True):
            self.shadow.define(made, varies)
        if step.writes and not step.outs:  # lists of tensors written at once
            for one in step.inputs:
                self.shadow.define(one, torch.ones_like(one, dtype=torch.bool))

    def look_back(self, outputs: list[Tensor]) -> dict[str, Tensor]:
        """Which elements of each parameter and buffer can change an output."""
        for tensor in outputs:
            self.returned.add(self.shadow.key(tensor))
            self.shadow.revive(tensor, torch.ones_like(tensor, dtype=torch.bool))
        for step in reversed(self.steps):
            lives = [self.shadow.live(out) for out in step.outs]
            for out in step.outs:
                self.shadow.kill(out)
            for one, live in zip(step.inputs, rule_of(step).needs(step, lives), strict=True):
                self.shadow.revive(one, live)
        return {name: self.shadow.live(tensor) for name, tensor in self.named.items()}


def _constants(step: Step) -> Tensor:
    """Taken while the model runs: the operand may be written over later."""
    x = step.args[1] if step.name == "addmm" else step.args[0]
    channels = 1 if step.name == "convolution" else x.dim() - 1
    axes = [axis for axis in range(x.dim()) if axis != channels]
    if not x.numel():
        return x.new_full((x.shape[channels],), torch.nan, dtype=torch.float64)
    low, high = x.amin(axes).double(), x.amax(axes).double()
    known = ~step.of(x).varies.any(axes) & (low == high)
    return torch.where(known, low, torch.full_like(low, torch.nan))


@final
class _Eyes(TorchFunctionMode):
    """Sees tensors leave torch: what a model computes with NumPy, no operator tells."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self._flow = flow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("numpy", "tolist", "__array__", "__dlpack__", "data_ptr"):
            self._flow.observe(args[0])
        return func(*args, **(kwargs or {}))


def follow(root: nn.Module, example: Example) -> tuple[Flow, dict[str, Tensor]]:
    """Run the model once.

    Args:
        root: an unwrapped module; it is left as it was.
        example: its inputs; their values do not matter.

    Returns:
        The steps, and for each parameter and buffer which elements can change an output.
    """
    flow = Flow(tensor_names(root))
    with quietly(root), slow_paths(), torch.no_grad(), _Eyes(flow), flow:
        out = call(root, example)
    with torch.no_grad():
        return flow, flow.look_back(list(tensors_in(out)))
