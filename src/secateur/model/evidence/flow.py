"""Synaptic flow: gradients of the summed output by absolute weights, for inputs of ones. No data, float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.evidence.functional import alone, run_with
from secateur.model.evidence.passes import Found
from secateur.model.evidence.source import Request
from secateur.model.graph.examples import Example, as_examples, call, mapped, resized, tensors_in
from secateur.model.names import clean_name
from secateur.model.targets import known_weights

__all__ = ["FLOW_KINDS", "gather_flow"]

FLOW_KINDS = {"flow": "dR/d|w|, R the summed output for ones, with absolute parameters and buffers, in float64"}


def gather_flow(request: Request) -> Found:
    """One pass with copies: the model's own tensors are not written to, whatever happens.

    Inputs are ones in the shape of one row of ``example_inputs``, else of the data's first batch, else ones for a first
    layer that is linear; whole numbers (tokens) stay as they are. Eval mode.

    Raises:
        ValueError: where no shape is known, the output is no tensor, the model is sharded, or it cannot run in float64.
    """
    with alone(request):
        request.root.eval()
        named = (*request.root.named_parameters(), *request.root.named_buffers())
        absolute = {clean_name(name): _absolute(tensor) for name, tensor in named}
        leaves = {name: absolute[name].requires_grad_() for name in request.weights}
        inputs = _ones(request)
        made = _run(request, absolute, lambda net: _slopes(net, call(net, inputs), list(leaves.values())), inputs)
    pairs = zip(leaves.items(), made, strict=True)
    return {"flow": {n: torch.zeros_like(leaf.detach()) if one is None else one.detach() for (n, leaf), one in pairs}}


def _absolute(tensor: Tensor) -> Tensor:
    one = tensor.detach()
    return one.double().abs() if one.is_floating_point() else one.clone()


def _slopes(net: nn.Module, output: Any, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    total = _sum(output)
    if not total.requires_grad:
        raise ValueError(
            f"the output of {type(net).__name__} for ones does not depend on its weights; is there a no_grad or detach "
            "in its forward?"
        )
    return torch.autograd.grad(total, leaves, allow_unused=True)


def _run(request: Request, tensors: dict[str, Tensor], function: Callable[[nn.Module], Any], inputs: Example) -> Any:
    """Forward and backward while the model has the copies: checkpointing runs parts of it again in the second."""
    try:
        return run_with(request.root, tensors, function)
    except RuntimeError as error:
        raise ValueError(
            f"{type(request.root).__name__} does not run in float64 on ones of shapes "
            f"{[tuple(t.shape) for t in tensors_in((inputs.args, inputs.kwargs))]}: {error}. Give example_inputs= in "
            "the shape that it takes; tensors that its forward makes have to follow the inputs' dtype"
        ) from error


def _ones(request: Request) -> Example:
    device = next(request.root.parameters()).device
    given = _example(request)

    def one(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device)
        return torch.ones_like(tensor, dtype=torch.float64) if tensor.is_floating_point() else tensor

    small = resized(given, 1)
    return Example(mapped(small.args, one), mapped(small.kwargs, one))


def _example(request: Request) -> Example:
    source = request.source
    if source.example is not None:
        return as_examples(source.example)[0]
    if source.data is not None:
        batch = next(iter([source.data] if _is_batch(source.data) else source.data), None)
        if isinstance(batch, (tuple, list)) and batch:
            batch = batch[0]
        if isinstance(batch, (Tensor, dict)):
            return as_examples(batch)[0]
    width = _first_width(request.root)
    if width is None:
        raise ValueError(
            "synaptic flow runs the model on ones, whose shape is not known: give example_inputs=, a tensor in the "
            "shape of the model's input (its values are not read)"
        )
    return Example((torch.ones(1, width),))


def _is_batch(data: Any) -> bool:
    return isinstance(data, (Tensor, dict)) or (isinstance(data, tuple) and len(data) == 2 and torch.is_tensor(data[0]))


def _first_width(root: nn.Module) -> int | None:
    """Inputs of the first layer, where it is linear."""
    first = next(iter(known_weights(root).values()), None)
    return first.shape[1] if first is not None and first.kind == "linear" else None


def _sum(output: Any) -> Tensor:
    value = getattr(output, "logits", output)
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise ValueError(
            f"the model returns {type(output).__name__}; synaptic flow adds up a tensor, the first in a tuple, .logits"
        )
    return value.sum()
