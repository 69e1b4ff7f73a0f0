"""Criteria that read gates of units: per example, of second order, and before what reads a coupled unit.

Evidence, with L_n the loss of example n: ``gate_example_abs`` = mean_n |dL_n/dz_u|, ``gate_example_sq`` =
mean_n (dL_n/dz_u)^2 for a gate z_u = 1 on each output of a layer, behind the batch norm that reads it;
``gate_change_sq`` = mean over batches of (-g + H/2)^2 with g = dL/dz_u and H = d^2L/dz_u^2; ``reader_gate_abs`` =
mean_n |dL_n/dx_u| for a gate x_u = 1 before all that reads a unit. A channel that several layers make (a residual
stream) has the mean of their scores: the sum divided by the number of sharers, as in Molchanov's code.

Per example means: the loss is the mean, or the sum, of its examples' losses, and examples do not mix (eval mode). Of
an (inputs, labels) batch that is tried by giving the loss each example twice; of other batches the mean is assumed.
A factor common to all, such as tokens per example, changes no order.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import CriterionEntry

__all__ = ["ROWS", "gate_taylor_fg", "gate_taylor_so", "head_importance", "taylor_2017", "unit_length"]


def taylor_2017(gate_example_abs: Tensor) -> Tensor:
    """Taylor expansion of 2017, ``s_c = t_c / sqrt(sum_j t_j^2)``, ``t_c = mean_n |mean_positions a dL_n/da|``.

    ``sum a dL_n/da`` over the positions of a channel is the gradient of its gate, so positions may cancel and examples
    may not; NVlabs' code takes the absolute value before the positions' mean, the paper behind it, and so do we. The
    number of positions drops out by the division by the layer's length. The gate stands before the activation
    function, where the product is the same behind a ReLU.

    Args:
        gate_example_abs: mean over examples of the absolute gradient of the gate, one per channel.

    Returns:
        Scores, one per channel, at least float32; of length one over the layer, all zero where all gradients are.

    Example:
        >>> import torch
        >>> [round(score, 4) for score in taylor_2017(torch.tensor([3.0, 4.0])).tolist()]
        [0.6, 0.8]

    Reference:
        Molchanov, Tyree, Karras, Aila, Kautz 2017, arXiv 1611.06440. The layer-wise division is from memory,
        not verified; with the paper's term for the layer's operations it is ``taylor_2017_flops``.
    """
    return unit_length(gate_example_abs)


def gate_taylor_fg(gate_example_sq: Tensor) -> Tensor:
    """First-order Taylor of a gate with gradients per example, ``s_u = mean_n (dL_n/dz_u)^2``.

    ``gate_taylor`` squares the gradient of a batch, in which examples cancel.

    Args:
        gate_example_sq: mean over examples of the squared gradient of the gate, one per filter.

    Returns:
        Scores, one per filter, at least float32.

    Example:
        >>> import torch
        >>> gate_taylor_fg(torch.tensor([0.25, 0.5])).tolist()
        [0.25, 0.5]

    Reference:
        Molchanov, Mallya, Tyree, Frosio, Kautz 2019, arXiv 1906.10771, the "FG" variant of their code.
    """
    return wide(gate_example_sq)


def gate_taylor_so(gate_change_sq: Tensor) -> Tensor:
    """Second-order Taylor of a gate on each filter, ``s_u = mean_b (-g_u + H_uu / 2)^2``, g and H of the gate.

    g and H are of each batch's own mean loss, and squares are averaged over batches, not derivatives. One backward pass
    through the backward pass per unit and batch, 16 units at a time: exact, and slow for wide networks.

    Args:
        gate_change_sq: mean over batches of the squared second-order change of the loss, one per filter.

    Returns:
        Scores, one per filter, at least float32.

    Example:
        >>> import torch
        >>> gate_taylor_so(torch.tensor([0.04, 0.09])).shape
        torch.Size([2])

    Reference:
        Molchanov, Mallya, Tyree, Frosio, Kautz 2019, arXiv 1906.10771.
    """
    return wide(gate_change_sq)


def head_importance(reader_gate_abs: Tensor) -> Tensor:
    """Importance of attention heads, ``s_h = t_h / sqrt(sum_j t_j^2)``, ``t_h = mean_n |dL_n/dx_h|``.

    x_h = 1 multiplies what the output projection reads of head h, so that ``dL_n/dx_h`` is the sum of
    ``a_h dL_n/da_h``. Heads are coupled units of ``sc.shrink(unit="head", ...)``; for unit ``channel`` it is the same
    measure of any coupled channel, at the inputs of what reads it.

    Args:
        reader_gate_abs: mean over examples of the absolute gradient of the gate, one per head.

    Returns:
        Scores, one per head, at least float32; of length one over the layer, all zero where all gradients are.

    Example:
        >>> import torch
        >>> [round(score, 4) for score in head_importance(torch.tensor([3.0, 4.0])).tolist()]
        [0.6, 0.8]

    Reference:
        Michel, Levy, Neubig 2019, arXiv 1905.10650 (from memory, not verified).
    """
    return unit_length(reader_gate_abs)


def unit_length(values: Tensor) -> Tensor:
    """Values of length 1, ``v / sqrt(sum_j v_j^2)``, at least float32; zeros stay zeros."""
    length = wide(values).double().square().sum().sqrt()
    return wide(values) / length.to(wide(values).dtype) if float(length) > 0.0 else wide(values)


_MOLCHANOV = "Molchanov et al. 2019, arXiv 1906.10771"
_PER_OUTPUT = frozenset({"channel", "filter"})

ROWS: Mapping[str, CriterionEntry] = {
    "taylor_2017": CriterionEntry(
        taylor_2017,
        "unit",
        "mean",
        "batches",
        "mean_n |sum_positions a dL_n/da|, length 1 per layer",
        "Molchanov et al. 2017, arXiv 1611.06440",
        units=_PER_OUTPUT,
        batches=10,
    ),
    "gate_taylor_fg": CriterionEntry(
        gate_taylor_fg,
        "unit",
        "mean",
        "batches",
        "mean_n (dL_n/dz)^2 of gates z, per example",
        _MOLCHANOV,
        units=_PER_OUTPUT,
        batches=10,
    ),
    "gate_taylor_so": CriterionEntry(
        gate_taylor_so,
        "unit",
        "mean",
        "batches",
        "mean_b (-g + H/2)^2 of gates, H exact",
        _MOLCHANOV,
        units=_PER_OUTPUT,
        batches=10,
    ),
    "head_importance": CriterionEntry(
        head_importance,
        "unit",
        "mean",
        "batches",
        "mean_n |dL_n/dx| of gates x on heads, length 1 per layer",
        "Michel et al. 2019, arXiv 1905.10650",
        units=frozenset({"channel"}),
        batches=10,
        coupled=True,
    ),
}
