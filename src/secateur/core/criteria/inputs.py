"""Criteria that read the inputs of layers: ``input_norm``, the norm of the inputs that each weight multiplies.

Which weights share an output or an input, evidence says: a criterion never has to know how a layer stores them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import CriterionEntry

__all__ = ["ROWS", "ria", "wanda"]


def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """Weight times input, ``s_ij = |w_ij| ||x_j||_2``; made for ``within="row"``, where outputs do not compete.

    The norm is of all inputs that came; published code divides its square by the number of sequences, which changes
    nothing inside a row.

    Args:
        weight: parameter, any shape.
        input_norm: root of the sum of squares of the inputs that each weight multiplies, shaped like ``weight``.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> wanda(torch.tensor([[0.1, -2.0]]), torch.tensor([[3.0, 0.25]])).tolist()
        [[0.30000001192092896, 0.5]]

    Reference:
        Sun, Liu, Bair, Kolter 2023, arXiv 2306.11695.
    """
    return wide(weight).abs() * input_norm.to(wide(weight).dtype)


def ria(weight: Tensor, input_norm: Tensor, input_sum: Tensor, output_sum: Tensor, *, a: float = 0.5) -> Tensor:
    """Relative importance and activation, ``s_ij = (|w_ij| / sum_i |w_ij| + |w_ij| / sum_j |w_ij|) ||x_j||_2^a``.

    Rows ``i`` are outputs, columns ``j`` the inputs that they read: of a convolution one for each place of the kernel,
    of a grouped one only the outputs of a group read its inputs. ``sc.permute_channels`` is the paper's other half.

    Args:
        weight: parameter, any shape.
        input_norm: root of the sum of squares of the inputs that each weight multiplies, shaped like ``weight``.
        input_sum: ``sum_i |w_ij|`` over the outputs that read the weight's input, shaped like ``weight``.
        output_sum: ``sum_j |w_ij|`` over all weights of its output, shaped like ``weight``.
        a: power of the norm, 0 or more; 0 leaves the inputs out.

    Returns:
        Scores like ``weight``, at least float32; 0 where the weight is.

    Raises:
        ValueError: for a negative power.

    Example:
        >>> weight, norm = torch.tensor([[1.0, 1.0], [3.0, 0.0]]), torch.tensor([[4.0, 1.0], [4.0, 1.0]])
        >>> down, across = weight.sum(0).expand(2, 2), weight.sum(1, keepdim=True).expand(2, 2)
        >>> ria(weight, norm, down, across).tolist()
        [[1.5, 1.5], [3.5, 0.0]]

    Reference:
        Zhang, Bai, Lin, Zhao, Hou, Cannistraci 2024, ICLR.
    """
    if a < 0:
        raise ValueError(f"ria(a={a}): the power of the inputs' norm is 0 or more; 0.5 is usual")
    sizes = wide(weight).abs()
    zero = torch.zeros((), dtype=sizes.dtype, device=sizes.device)
    relative = sizes / input_sum.to(sizes.dtype) + sizes / output_sum.to(sizes.dtype)
    return torch.where(sizes > 0, relative, zero) * input_norm.to(sizes.dtype) ** a


ROWS: Mapping[str, CriterionEntry] = {
    "wanda": CriterionEntry(
        wanda,
        "weight",
        "mean",
        "batches",
        "|w_ij| ||x_j||",
        "Sun et al. 2023, arXiv 2306.11695",
        batches=16,
        elementwise=True,
    ),
    "ria": CriterionEntry(
        ria,
        "weight",
        "mean",
        "batches",
        "(|w_ij| / column sum + |w_ij| / row sum) ||x_j||^a",
        "Zhang et al. 2024, ICLR",
        batches=16,
        elementwise=True,
    ),
}
