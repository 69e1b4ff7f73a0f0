"""Criteria that read gradients of the loss, collected batch by batch.

Evidence, with g the gradient of one batch's mean loss and mean_b the mean over batches:
``grad`` = mean_b g, ``grad_abs`` = mean_b |g|, ``grad_sq`` = mean_b g^2 (the mean of squares, not the square
of the mean, which vanishes near a minimum), ``gate_grad_sq`` = mean_b (dL/dz_u)^2 for a gate z_u = 1 on unit u.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import CriterionEntry

__all__ = ["ROWS", "gate_taylor", "grad_magnitude", "snip", "snip_signed", "taylor"]


def grad_magnitude(grad_abs: Tensor) -> Tensor:
    """Gradient magnitude, ``s = mean_b |g|``, without the weight.

    Some articles call this SNIP; the paper's SNIP multiplies by the weight (see ``snip``).

    Args:
        grad_abs: mean over batches of the absolute gradient, shape of the parameter.

    Returns:
        Scores like the parameter, at least float32.

    Example:
        >>> import torch
        >>> grad_magnitude(torch.tensor([1.2, 2.4])).tolist()
        [1.2000000476837158, 2.4000000953674316]

    Reference:
        A variant found in expositions of Lee, Ajanthan, Torr 2019, arXiv 1810.02340.
    """
    return wide(grad_abs)


def snip(weight: Tensor, grad_abs: Tensor) -> Tensor:
    """Connection sensitivity, ``s = |w| mean_b |g|``.

    At initialisation with one batch this is SNIP; the paper's division by the sum changes no order. On a trained
    network it is the gradient criterion ``sum |w g|`` of a unit with ``reduce="sum"``; its square is ``taylor``.
    Their code prunes biases as well, and trains another initialisation than it scored. Here that is asked for, by
    ``targets=["*weight", "*bias"]`` and ``sc.tickets.reinitialised``.

    Args:
        weight: parameter, any shape.
        grad_abs: mean over batches of the absolute gradient, same shape.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> import torch
        >>> snip(torch.tensor([0.5, -2.0]), torch.tensor([2.0, 1.0])).tolist()
        [1.0, 2.0]

    Reference:
        Lee, Ajanthan, Torr 2019, arXiv 1810.02340.
    """
    return (wide(weight) * wide(grad_abs)).abs_()  # the sizes of gradients have no sign; one tensor less


def snip_signed(weight: Tensor, grad: Tensor) -> Tensor:
    """Connection sensitivity of the whole data, ``s = |w mean_b g|``: signs may cancel between batches.

    Args:
        weight: parameter, any shape.
        grad: mean over batches of the gradient, same shape.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> import torch
        >>> snip_signed(torch.tensor([0.5, -2.0]), torch.tensor([-2.0, 1.0])).tolist()
        [1.0, 2.0]

    Reference:
        Lee, Ajanthan, Torr 2019, arXiv 1810.02340, accumulated as in the code of Tanaka et al. 2020, arXiv 2006.05467.
    """
    return (wide(weight) * wide(grad)).abs_()


def taylor(weight: Tensor, grad_sq: Tensor) -> Tensor:
    """First-order Taylor, the squared change of the loss ``s = w^2 mean_b g^2``; a unit has the sum.

    Args:
        weight: parameter, any shape.
        grad_sq: mean over batches of the squared gradient, same shape.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> import torch
        >>> taylor(torch.tensor([0.5, -2.0]), torch.tensor([4.0, 1.0])).tolist()
        [1.0, 4.0]

    Reference:
        Molchanov, Mallya, Tyree, Frosio, Kautz 2019, arXiv 1906.10771.
    """
    return wide(weight).square() * wide(grad_sq)


def gate_taylor(gate_grad_sq: Tensor) -> Tensor:
    """First-order Taylor of a gate on each filter, ``s_u = mean_b (dL/dz_u)^2 = mean_b (sum_{i in u} g_i w_i)^2``.

    Unlike ``taylor``, members of a filter may cancel: the change of the loss when the whole filter goes.

    Args:
        gate_grad_sq: mean over batches of the squared gradient of the gate, one per filter.

    Returns:
        Scores, one per filter, at least float32.

    Example:
        >>> import torch
        >>> gate_taylor(torch.tensor([0.25, 0.5])).tolist()
        [0.25, 0.5]

    Reference:
        Molchanov, Mallya, Tyree, Frosio, Kautz 2019, arXiv 1906.10771.
    """
    return wide(gate_grad_sq)


_SNIP = "Lee, Ajanthan, Torr 2019, arXiv 1810.02340"
_MOLCHANOV = "Molchanov et al. 2019, arXiv 1906.10771"

ROWS: Mapping[str, CriterionEntry] = {
    "grad_magnitude": CriterionEntry(
        grad_magnitude, "weight", "mean", "batches", "mean_b |g|", f"variant of {_SNIP}", elementwise=True
    ),
    "snip": CriterionEntry(snip, "weight", "mean", "batches", "|w| mean_b |g|", _SNIP, elementwise=True),
    "snip_signed": CriterionEntry(snip_signed, "weight", "mean", "batches", "|w mean_b g|", _SNIP, elementwise=True),
    "taylor": CriterionEntry(
        taylor, "weight", "sum", "batches", "sum w^2 mean_b g^2", _MOLCHANOV, batches=10, elementwise=True
    ),
    "gate_taylor": CriterionEntry(
        gate_taylor,
        "unit",
        "sum",
        "batches",
        "mean_b (dL/dz)^2 of a gate z on each filter",
        _MOLCHANOV,
        units=frozenset({"channel", "filter"}),
        batches=10,
    ),
}
