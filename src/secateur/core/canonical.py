"""One view of all weights: ``[g, O/g, I/g, *k]``, whatever the module stores.

Shape letters: O output channels, I input channels, g groups, k kernel sizes (none for a linear
layer, which is a 1x1 convolution). A transposed convolution stores ``[I, O/g, *k]`` and is
turned round; an embedding table ``[V, D]`` stays as it is: O is the row (the token), I the
embedding dimension. A bias ``[O]`` is one weight per output, whose input is always 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.types import KeyLayout

__all__ = ["grouped_shape", "to_grouped", "to_parameter", "wide"]


def wide(tensor: Tensor) -> Tensor:
    """The tensor in at least float32: half precisions and integers are widened, float64 stays.

    Example:
        >>> wide(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32)


def grouped_shape(layout: KeyLayout) -> tuple[int, ...]:
    """``(g, O/g, I/g, *k)`` of a parameter.

    Raises:
        ValueError: where the shape does not fit the kind and the groups.

    Example:
        >>> grouped_shape(KeyLayout((8, 3, 5, 5), kind="conv_transpose", groups=2))
        (2, 3, 4, 5, 5)
        >>> grouped_shape(KeyLayout((10, 20)))
        (1, 10, 20)
    """
    shape, groups = layout.shape, layout.groups
    if layout.kind == "bias" and len(shape) == 1 and groups == 1:
        return (1, *shape, 1)
    if len(shape) < 2 or groups < 1 or shape[0] % groups:
        raise ValueError(
            f"a parameter of shape {shape} with groups={groups} is no {layout.kind} weight: at least two axes are "
            "needed, and groups has to divide the first"
        )
    if layout.kind == "conv_transpose":
        return (groups, shape[1], shape[0] // groups, *shape[2:])
    return (groups, shape[0] // groups, *shape[1:])


def to_grouped(tensor: Tensor, layout: KeyLayout) -> Tensor:
    """Parameter-shaped tensor -> ``[g, O/g, I/g, *k]``, a view where strides allow it."""
    if layout.kind == "conv_transpose":
        groups, outputs, inputs, *kernel = grouped_shape(layout)
        return tensor.reshape(groups, inputs, outputs, *kernel).transpose(1, 2)
    return tensor.reshape(grouped_shape(layout))


def to_parameter(tensor: Tensor, layout: KeyLayout) -> Tensor:
    """``[g, O/g, I/g, *k]`` -> parameter shape; the inverse of ``to_grouped``."""
    tensor = tensor.reshape(grouped_shape(layout))
    if layout.kind == "conv_transpose":
        tensor = tensor.transpose(1, 2)
    return tensor.reshape(layout.shape).contiguous()
