"""Criteria for networks that were not trained yet; nothing forbids them later.

Evidence: ``hessian_gradient`` = H g of a loss with tempered logits, ``flow`` = dR/d|w| of the sum R of the outputs for
inputs of ones and absolute weights, ``meta_grad`` = dL(w_M)/dw_0 through M steps of training, ``meta_gate`` = the same
for a gate on each filter, ``fisher_diagonal`` = mean over samples of the squared gradient of a sample's loss.
Options of these criteria reach those who collect the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.core.canonical import wide
from secateur.core.criteria.gradient import snip
from secateur.types import CriterionEntry

__all__ = ["ROWS", "fisher", "force", "grasp", "prospr", "prospr_gate", "synflow"]


def grasp(weight: Tensor, hessian_gradient: Tensor, *, temperature: float = 200.0) -> Tensor:
    """Gradient signal preservation, ``s = w (H g)``, signed: what holds the gradient's norm back goes first.

    Removing weight i changes ``|g|^2`` by about ``-2 s_i``, so negative scores are removed to gain. Expositions that
    speak of the loss itself, or take absolute values, describe another criterion. The paper's own ``-s`` is pruned
    from its largest down, which is the same. Give a batch with some samples of every class (the paper: 10 of each).

    Args:
        weight: parameter, any shape.
        hessian_gradient: product of the Hessian and the gradient of the tempered loss, same shape.
        temperature: the outputs are divided by it before the loss; above 0, 200 in the paper's code.

    Returns:
        Signed scores like ``weight``, at least float32.

    Raises:
        ValueError: for a temperature that is not above 0.

    Example:
        >>> import torch
        >>> grasp(torch.tensor([0.5, -1.0, 0.5]), torch.tensor([-1.0, -1.0, 4.0])).tolist()
        [-0.5, 1.0, 2.0]

    Reference:
        Wang, Zhang, Grosse 2020, arXiv 2002.07376.
    """
    if not temperature > 0:
        raise ValueError(f"grasp(temperature={temperature!r}): the outputs are divided by it; give a number above 0")
    return wide(weight) * wide(hessian_gradient)


def synflow(weight: Tensor, flow: Tensor) -> Tensor:
    """Synaptic flow, ``s = |w dR/d|w||``, R the summed output for ones through absolute weights: needs no data.

    Without biases the scores of every layer add up to R, so no layer empties as long as pruning takes many rounds: 100
    by default. One round may empty the widest layer.

    Args:
        weight: parameter, any shape.
        flow: dR/d|w|, same shape.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> import torch
        >>> synflow(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 1.0])).tolist()
        [1.0, 2.0]

    Reference:
        Tanaka, Kunin, Yamins, Ganguli 2020, arXiv 2006.05467.
    """
    return (wide(weight) * wide(flow)).abs_()


def force(weight: Tensor, grad_abs: Tensor) -> Tensor:
    """Foresight connection sensitivity, ``s = |w| mean_b |g(m w)|``: removed weights count with the value they had.

    In rounds (10 by default; the paper uses more) with an exponential schedule. The gradient is that of the network as
    it is masked so far, by the product of mask and weight, so removed weights have one and may return. Channels of unit
    ``channel`` do not: what makes one and what reads it are masked together, so that neither has a gradient, and the
    mask is that of ``iter_snip``.

    Args:
        weight: parameter before masking, any shape.
        grad_abs: mean over batches of the absolute gradient of the masked network, same shape.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> import torch
        >>> force(torch.tensor([0.5, -2.0]), torch.tensor([2.0, 1.0])).tolist()
        [1.0, 2.0]

    Reference:
        de Jorge, Sanyal, Behl, Torr, Rogez, Dokania 2021, arXiv 2006.09081.
    """
    return wide(weight).abs() * wide(grad_abs)


def prospr(
    weight: Tensor, meta_grad: Tensor, *, lr: float = 0.1, momentum: float = 0.0, first_order: bool = False
) -> Tensor:
    """Prospect pruning, ``s = |w_0 dL(w_M)/dw_0|``: sensitivity of the loss behind M steps of training.

    The batches are for the M steps, one each, and the last one for the loss: 4 batches are 3 steps. Where data has
    fewer, they are read again in turn. The paper scores in train mode (``mode="train"``).

    Args:
        weight: parameter before the steps, any shape.
        meta_grad: gradient of the last loss by the first weights, same shape.
        lr: step size, above 0.
        momentum: of the steps, from 0, below 1.
        first_order: the steps' gradients count as constants; cheaper.

    Returns:
        Scores like ``weight``, at least float32.

    Raises:
        ValueError: for ``lr`` or ``momentum`` out of range.

    Example:
        >>> import torch
        >>> prospr(torch.tensor([1.5]), torch.tensor([-2.0])).tolist()
        [3.0]

    Reference:
        Alizadeh, Tailor, Zintgraf, van Amersfoort, Farquhar, Lane, Gal 2022, arXiv 2202.08132.
    """
    _check_steps(lr, momentum)
    return (wide(weight) * wide(meta_grad)).abs_()


def prospr_gate(meta_gate: Tensor, *, lr: float = 0.1, momentum: float = 0.0, first_order: bool = False) -> Tensor:
    """Prospect pruning of filters, ``s_u = |sum_{i in u} w_0i dL(w_M)/dw_0i|``: one gate c = 1 on each filter.

    Args:
        meta_gate: gradient of the last loss by the gates, one per filter.
        lr: step size, above 0.
        momentum: of the steps, from 0, below 1.
        first_order: the steps' gradients count as constants; cheaper.

    Returns:
        Scores, one per filter, at least float32.

    Raises:
        ValueError: for ``lr`` or ``momentum`` out of range.

    Example:
        >>> import torch
        >>> prospr_gate(torch.tensor([0.25, -0.5])).tolist()
        [0.25, 0.5]

    Reference:
        Alizadeh, Tailor, Zintgraf, van Amersfoort, Farquhar, Lane, Gal 2022, arXiv 2202.08132.
    """
    _check_steps(lr, momentum)
    return wide(meta_gate).abs()


def fisher(weight: Tensor, fisher_diagonal: Tensor) -> Tensor:
    """Diagonal empirical Fisher, ``s = w^2 F`` with ``F = mean_n g_n^2`` over samples, not centred.

    Before training the mean gradient is not zero and is part of F. Behind training this orders like ``obd`` with
    ``hess="fisher"``, which has a factor of a half.

    Args:
        weight: parameter, any shape.
        fisher_diagonal: mean over samples of the squared gradient of the sample's loss, same shape.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> import torch
        >>> fisher(torch.tensor([0.5, -2.0]), torch.tensor([4.0, 1.0])).tolist()
        [1.0, 4.0]

    Reference:
        Theis, Korshunova, Tejani, Huszar 2018, arXiv 1801.05787 (from memory, not verified).
    """
    return wide(weight).square() * wide(fisher_diagonal)


def _check_steps(lr: float, momentum: float) -> None:
    if not lr > 0 or not 0 <= momentum < 1:
        raise ValueError(
            f"lr={lr!r}, momentum={momentum!r} of the steps that look ahead: lr above 0, momentum from 0, below 1"
        )


_ALIZADEH = "Alizadeh et al. 2022, arXiv 2202.08132"
_DE_JORGE = "de Jorge et al. 2021, arXiv 2006.09081"

ROWS: Mapping[str, CriterionEntry] = {
    "grasp": CriterionEntry(
        grasp,
        "weight",
        "sum",
        "batches",
        "w (H g), signed, of a tempered loss",
        "Wang et al. 2020, arXiv 2002.07376",
        elementwise=True,
    ),
    "synflow": CriterionEntry(
        synflow,
        "weight",
        "sum",
        "none",
        "|w dR/d|w||, R the sum of outputs for ones; 100 rounds",
        "Tanaka et al. 2020, arXiv 2006.05467",
        rounds=100,
        elementwise=True,
    ),
    "force": CriterionEntry(
        force,
        "weight",
        "sum",
        "batches",
        "|w| mean_b |g(m w)|, removed weights may return; 10 rounds",
        _DE_JORGE,
        rounds=10,
        regrow=True,
        elementwise=True,
    ),
    "iter_snip": CriterionEntry(
        snip, "weight", "sum", "batches", "snip in 10 rounds", _DE_JORGE, rounds=10, elementwise=True
    ),
    "prospr": CriterionEntry(
        prospr, "weight", "sum", "batches", "|w dL(w_M)/dw| through M steps", _ALIZADEH, batches=4, elementwise=True
    ),
    "prospr_gate": CriterionEntry(
        prospr_gate,
        "unit",
        "sum",
        "batches",
        "|dL(w_M)/dc| of a gate c on each filter, through M steps",
        _ALIZADEH,
        units=frozenset({"channel", "filter"}),
        batches=4,
    ),
    "fisher": CriterionEntry(
        fisher,
        "weight",
        "sum",
        "batches",
        "w^2 mean_n g_n^2 over samples",
        "Theis et al. 2018, arXiv 1801.05787",
        elementwise=True,
    ),
}
