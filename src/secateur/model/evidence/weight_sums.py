"""Sums of the sizes of weights over the inputs and over the outputs of a layer, shaped like its weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateur.core.canonical import grouped_shape, to_grouped, to_parameter, wide
from secateur.types import KeyLayout

__all__ = ["SUM_KINDS", "from_matrix", "weight_sum"]

SUM_KINDS: Mapping[str, str] = {
    "input_sum": "per weight: sum of |w| over the outputs that read its input, at its place of the kernel",
    "output_sum": "per weight: sum of |w| over all weights of its output",
}


def _by_last_axis(key: KeyLayout, columns: int) -> bool:
    """Whether the inputs lie along the last axis: of linear layers, and of experts side by side in one tensor."""
    return key.kind == "linear" or math.prod(grouped_shape(key)[2:]) != columns


def _to_matrix(weight: Tensor, key: KeyLayout, columns: int) -> Tensor:
    """A weight as its products read it, ``[rows, columns]``: one row per output, those of a group together."""
    turned = weight if _by_last_axis(key, columns) else to_grouped(weight, key)
    return turned.reshape(-1, columns)


def from_matrix(matrix: Tensor, key: KeyLayout) -> Tensor:
    """The inverse of ``_to_matrix``, in the shape of the parameter."""
    return matrix.reshape(key.shape) if _by_last_axis(key, matrix.shape[1]) else to_parameter(matrix, key)


def weight_sum(kind: str, weight: Tensor, key: KeyLayout, columns: int, together: Sequence[tuple[int, int]]) -> Tensor:
    """Sums of ``|w|``, added up in float64.

    ``output_sum``: over all weights of an output. ``input_sum``: over the outputs that read an input, those of its
    group alone; of a convolution at each place of the kernel by itself.

    Args:
        kind: one of the two.
        weight: parameter, in its own shape.
        key: its layout.
        columns: inputs of one output, places of the kernel included.
        together: first row and the row behind the last, of outputs that read the same inputs; they cover the rows.

    Returns:
        Like the weight, at least float32.

    Example:
        >>> weight = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
        >>> weight_sum("input_sum", weight, KeyLayout((2, 2)), 2, [(0, 2)]).tolist()
        [[4.0, 6.0], [4.0, 6.0]]
        >>> weight_sum("output_sum", weight, KeyLayout((2, 2)), 2, [(0, 2)]).tolist()
        [[3.0, 3.0], [7.0, 7.0]]
    """
    matrix = _to_matrix(wide(weight.detach()).abs(), key, columns)
    if kind == "output_sum":
        return from_matrix(matrix.sum(1, keepdim=True, dtype=torch.float64).to(matrix.dtype).expand_as(matrix), key)
    sums = [
        matrix[first:last].sum(0, dtype=torch.float64).to(matrix.dtype).expand(last - first, -1)
        for first, last in together
    ]
    return from_matrix(sums[0] if len(sums) == 1 else torch.cat(sums), key)
