"""A sparse linear layer as a checked function."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.native.gates import MOST_KEPT, SMALL
from secateur.native.loading import never_traced, takes
from secateur.runtime.formats import Packed
from secateur.runtime.pairs import rounded
from secateur.runtime.quads import product
from secateur.runtime.words import KNOWN

__all__ = ["ACTIVATIONS", "linear"]

_is_compiling = torch.compiler.is_compiling

ACTIVATIONS: dict[str | None, tuple[int, Callable[[Tensor], Tensor]]] = {
    None: (0, lambda y: y),
    "relu": (1, F.relu),
    "gelu": (2, F.gelu),
    "gelu_tanh": (3, lambda y: F.gelu(y, approximate="tanh")),
    "silu": (4, F.silu),
    "relu6": (5, F.relu6),
    "hardswish": (6, F.hardswish),
    "leaky_relu_0.1": (7, lambda y: F.leaky_relu(y, 0.1)),
    "leaky_relu_0.01": (8, lambda y: F.leaky_relu(y, 0.01)),
}
"""Name -> number in the core, and the function itself."""


def linear(x: Tensor, weight: Packed, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """Multiply by a packed sparse weight, on one thread, for inference.

    ``y = activation(x W^T + bias)``

    A removed weight contributes nothing, even to NaN and infinity; where a kept weight meets them they come through.
    Layouts in bf16 round ``x`` to bf16, denormal numbers to 0, and sum in float32; of a pair they keep both weights.
    Layouts in int8 put every sample of ``x`` on a grid of 256 steps from its least to its greatest value, 0 among them;
    a sample that holds NaN or infinity comes out as NaN.

    Args:
        x: float32 ``[..., K]`` on the CPU. What is not contiguous is copied.
        weight: of shape ``(M, K)``, from `pack`.
        bias: float32 ``[M]``.
        activation: a key of ``ACTIVATIONS``: None, ``relu``, ``gelu``, ``gelu_tanh``, ``silu``, ``relu6``,
            ``hardswish``, ``leaky_relu_0.1`` or ``leaky_relu_0.01``.

    Returns:
        float32 ``[..., M]``.

    Raises:
        ValueError: wrong dtype, shape or device, an activation that does not exist, or gradients are asked for.

    Example:
        >>> from secateur.runtime import pack
        >>> packed = pack(torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, -1.0]]))
        >>> linear(torch.tensor([[1.0, 2.0, 3.0]]), packed, activation="relu").tolist()
        [[2.0, 0.0]]
    """
    # A function that is never traced costs 1 to 15 us per call, asking costs 0.1.
    if _is_compiling():
        return _untraced(x, weight, bias, activation)
    gate, known = weight.gate, ACTIVATIONS.get(activation)
    if gate is not None and known is not None:
        y = gate.multiply(x, bias, known[0])
        if y is not None:
            return y
    return _linear(x, weight, bias, activation)


def _linear(x: Tensor, weight: Packed, bias: Tensor | None, activation: str | None) -> Tensor:
    rows, cols = weight.shape
    shape = x.shape
    if x.dtype is not torch.float32 or not x.is_cpu or not shape or shape[-1] != cols or x.layout != torch.strided:
        raise ValueError(
            f"x: expected dense float32 of shape [..., {cols}] on the CPU for a weight of shape {weight.shape}, got "
            f"{x.dtype} of shape {tuple(shape)} on {x.device}"
        )
    if bias is not None and (bias.dtype is not torch.float32 or bias.shape != (rows,) or not bias.is_cpu):
        raise ValueError(
            f"bias: expected float32 of shape ({rows},) on the CPU for a weight of shape {weight.shape}, got "
            f"{bias.dtype} of shape {tuple(bias.shape)} on {bias.device}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: allowed are {', '.join(map(str, ACTIVATIONS))}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("x requires gradients, and packed weights have none: call under torch.no_grad()")
    if weight.native is None or not takes(x) or (bias is not None and not takes(bias)):
        return _reference(x, weight, bias, activation)
    x = x.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    # Of separate numbers torch makes a tensor in half the time that it takes for a tuple.
    if len(shape) == 2:
        samples = shape[0]
        y = x.new_empty(samples, rows)
    else:
        samples = math.prod(shape[:-1])
        y = x.new_empty(*shape[:-1], rows)
    weight.native.run(
        x.data_ptr(),
        samples,
        y.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        ACTIVATIONS[activation][0],
    )
    if weight.gate is not None and x.ndim == 2 and 0 < samples <= SMALL and y.numel() <= MOST_KEPT:
        weight.gate.learn(samples, weight.native, torch.empty_like(y))  # the next such call takes the gate
    return y


_untraced = never_traced(_linear)


def _reference(x: Tensor, weight: Packed, bias: Tensor | None, activation: str | None) -> Tensor:
    samples = x.detach().reshape(math.prod(x.shape[:-1]), weight.shape[1])
    inputs = KNOWN[weight.layout].inputs
    if inputs == 4:
        y = product(samples, weight.integers()[0], weight.scales)
    else:
        dense, mask = weight.reference()
        samples = rounded(samples) if inputs == 2 else samples
        y = F.linear(samples, dense)
        # 0 times infinity is NaN: samples that hold such values are multiplied weight by weight.
        for sample in (~torch.isfinite(samples)).any(1).nonzero()[:, 0].tolist():
            y[sample] = torch.where(mask, dense * samples[sample], 0.0).sum(1)
    y = y if bias is None else y + bias.detach()
    return ACTIVATIONS[activation][1](y).reshape(*x.shape[:-1], weight.shape[0])
